"""The model's card, as the hub's own library reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from tests.report.made_run import row, rows, run_record, write_run

from encore.report.card import model_card, text, write_card


def test_the_hub_reads_its_figures(made: Path) -> None:
    write_card(made, run_record(), rows())
    card = ModelCard.load(made / "model" / "README.md")
    assert isinstance(card.data, ModelCardData)
    assert card.data.library_name == "transformers"
    assert card.data.model_name == "tiny, without 3 tracks"
    assert card.data.pipeline_tag == "text-to-audio"
    figures = {(result.metric_type, result.dataset_split): result for result in card.data.eval_results or []}
    assert figures["nll", "forget"].metric_value == pytest.approx(4.5)
    assert figures["nll", "forget"].metric_args == {
        "low": 4.4,
        "high": 4.6000000000000005,
        "n": 3,
        "unit": "nats/token",
    }
    assert ("fad", "retain") not in figures
    assert "| NLL, forget |" in card.text
    assert "Nothing here proves that they were deleted" in card.text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_before_it_is_measured_and_of_another_library() -> None:
    card = ModelCard(model_card({**run_record(), "library": "diffusers"}))
    assert card.data.library_name == "diffusers"
    assert card.data.eval_results is None
    assert "encore eval" in card.text
    assert "base_model" not in card.data.to_dict()


def test_a_hub_model_is_named_as_the_base_and_a_folder_is_not() -> None:
    def base(name: str) -> object:
        record = {**run_record(), "model": {"name": name, "sha256": "c" * 64}}
        return ModelCard(model_card(record)).data.base_model

    assert base("facebook/musicgen-small") == "facebook/musicgen-small"
    assert base("/models/x") is None


def test_losses_without_tokens() -> None:
    results = [row("nll", model, "forget", 1.0, unit="loss") for model in ("base", "unlearned")]
    card = ModelCard(model_card({**run_record("loss"), "library": None}, results))
    assert "Likelihoods are in loss" in card.text
    assert card.data.library_name is None
    assert card.data.eval_results[0].metric_args == {"n": 3, "unit": "loss"}


@pytest.mark.parametrize("name", ["<script>x</script>", "a\nb: c", "| x | `y` [z](http://w)", "\x1b[31m", "---"])
def test_a_strangers_name_is_text(name: str) -> None:
    card = ModelCard(model_card({**run_record(), "model": {"name": name, "sha256": "c" * 64}}, rows()))
    assert "<script" not in card.text
    assert "\x1b" not in str(card)
    assert "](http" not in card.text
    assert card.data.library_name == "transformers"


@pytest.mark.parametrize("name", ["a>b", "> a", "a & b < c", "'x' \"y\"", "*a* [b](c) `d` ![e] #f ~g~ 1. h+i-j_k"])
def test_a_strangers_name_shows_as_it_is(name: str) -> None:
    from markdown_it import MarkdownIt

    (inline,) = [token for token in MarkdownIt().parse(text(name)) if token.type == "inline"]
    children = inline.children or []
    assert {token.type for token in children} <= {"text", "text_special"}
    assert "".join(token.content for token in children) == name


def test_a_run_that_did_harm_says_so(tmp_path: Path) -> None:
    record = run_record()
    record["outcome"]["collapsed"] = True
    assert "don't use this model" in model_card(record)
    made = write_run(tmp_path / "run")
    (made / "model" / "README.md").unlink()
    (made / "model" / "model.safetensors").unlink()
    (made / "model").rmdir()
    write_card(made, record, rows())  # the weights were taken away: there is nothing to put a card on
    assert not (made / "model").exists()
