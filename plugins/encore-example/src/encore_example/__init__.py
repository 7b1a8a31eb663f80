"""What this plugin offers. Encore reads this on every start: keep torch out of it."""

from encore.api import MethodSpec, MetricSpec, RowSpec, hookimpl


@hookimpl
def encore_register_methods():
    return [
        MethodSpec(
            name="example-hinge",
            summary="raise the loss of forget to that of held-out music, hold retain",
            target="encore_example.method:Hinge",
            needs={"retain", "holdout"},
        )
    ]


@hookimpl
def encore_register_metrics():
    return [
        MetricSpec(
            name="example_entropy",
            summary="how uncertain the model is about each next token",
            target="encore_example.metric:Entropy",
            needs={"logits"},
            rows=(
                RowSpec(
                    name="example_entropy",
                    set="forget",
                    label="entropy of next tokens, forget",
                    plain="How uncertain the model is about the forgotten tracks",
                    direction="higher",
                    target="at least 90 % of gold's",
                    judge="encore_example.metric:near_gold",
                    column="entropy",
                ),
                RowSpec(
                    name="example_entropy",
                    set="retain",
                    label="entropy of next tokens, retain",
                    direction="base",
                ),
            ),
        )
    ]
