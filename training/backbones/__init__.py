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
    "sim": "training.backbones.sim:SIM",
    "eta": "training.backbones.eta:ETA",
}
LONG_HISTORY = ("sim", "eta")
"""Those that search a history longer than others see: baselines of the field beside the seven of LIBER's table."""
HISTORY_LENGTH, LONG_HISTORY_LENGTH = 20, 300
"""Behaviors that a backbone sees by default, and that one of `LONG_HISTORY` sees."""


def history_length(reference: str) -> int:
    """Return how many behaviors the backbone `module:Class` sees by default."""
    return LONG_HISTORY_LENGTH if reference in [BACKBONES[name] for name in LONG_HISTORY] else HISTORY_LENGTH


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
