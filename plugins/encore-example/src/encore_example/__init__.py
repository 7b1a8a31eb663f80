"""What this plugin offers. Encore reads this on every start: keep torch out of it."""

from encore.api import MethodSpec, MetricSpec, hookimpl


@hookimpl
def encore_register_methods():
    return [
        MethodSpec(
            name="example-hinge",
            summary="raise the loss of forget to the unseen level, hold retain",
            target="encore_example.method:Hinge",
            needs={"retain", "holdout"},
        )
    ]


@hookimpl
def encore_register_metrics():
    return [
        MetricSpec(
            name="example_entropy",
            summary="how unsure the model is of each next token",
            target="encore_example.metric:Entropy",
            needs={"logits"},
        )
    ]
