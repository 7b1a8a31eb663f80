"""What this plugin offers: diffusion models as backends. Encore reads this on every start: keep torch out of it."""

from encore.api import BackendSpec, hookimpl

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
