"""What this plugin offers: diffusion models, and methods for them. Encore reads this at every start: no torch here."""

from encore.api import BackendSpec, MethodSpec, hookimpl

REQUIRES = ("diffusers", "torchsde")
INSTALL = "pip install encore-diffusers"


@hookimpl
def encore_register_backends() -> list[BackendSpec]:
    families = [
        ("stable-audio", "Stable Audio Open, through diffusers", "stable_audio:StableAudio"),
        ("ace-step", "ACE-Step 1.5, through diffusers", "ace_step:AceStep"),
        ("audioldm2", "AudioLDM 2, through diffusers", "audioldm2:AudioLdm2"),
    ]
    return [
        BackendSpec(name, summary, f"encore_diffusers.{target}", requires=REQUIRES, install=INSTALL)
        for name, summary, target in families
    ]


@hookimpl
def encore_register_methods() -> list[MethodSpec]:
    return [
        MethodSpec(
            name,
            summary,
            f"encore_diffusers.{target}",
            requires=REQUIRES,
            needs={"retain", "predictions"},
            install=INSTALL,
        )
        for name, summary, target in [
            ("siss", "diffusion: toward retain, away from forget, importance-sampled", "siss:Siss"),
            ("retrack", "diffusion: denoising redirected to retain's nearest neighbours", "retrack:ReTrack"),
        ]
    ]
