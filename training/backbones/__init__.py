"""The CTR backbones, one per file; each takes (InputShape, config) and a batch of `liber_feast.inputs`."""

from liber_feast.errors import ConfigError

BACKBONES = {
    "dcn": "training.backbones.dcn:DCN",
    "deepfm": "training.backbones.deepfm:DeepFM",
    "xdeepfm": "training.backbones.xdeepfm:XDeepFM",
    "autoint": "training.backbones.autoint:AutoInt",
    "fibinet": "training.backbones.fibinet:FiBiNet",
    "din": "training.backbones.din:DIN",
    "dien": "training.backbones.dien:DIEN",
}


def backbone_reference(name: str) -> str:
    """Return the `module:Class` of a backbone of ours, or `name` itself where it is one.

    Raises:
        ConfigError: a name that is neither.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if ":" in name:
        return name
    raise ConfigError(
        f"backbone {name!r} is unknown. Known: {', '.join(BACKBONES)}; your own is --backbone package.module:Class."
    )
