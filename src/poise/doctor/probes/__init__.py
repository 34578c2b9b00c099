"""What looks at a sampled training step: each probe turns one kind of thing into signals."""

from poise.doctor.probes.activations import ActivationProbe
from poise.doctor.probes.adam import AdamProbe
from poise.doctor.probes.attention import AttentionProbe
from poise.doctor.probes.batch import BatchProbe
from poise.doctor.probes.chains import ChainProbe
from poise.doctor.probes.gradients import GradientProbe
from poise.doctor.probes.hyperparameters import HyperparameterProbe
from poise.doctor.probes.logits import LogitProbe
from poise.doctor.probes.modes import ModeProbe
from poise.doctor.probes.orphans import OrphanProbe
from poise.doctor.probes.probe import Probe
from poise.doctor.probes.scale_invariance import ScaleInvarianceProbe
from poise.doctor.probes.sharpness import SharpnessProbe
from poise.doctor.probes.updates import UpdateProbe

PROBES: tuple[type[Probe], ...] = (
    ActivationProbe,
    AdamProbe,
    AttentionProbe,
    BatchProbe,
    ChainProbe,
    GradientProbe,
    HyperparameterProbe,
    LogitProbe,
    ModeProbe,
    OrphanProbe,
    ScaleInvarianceProbe,
    SharpnessProbe,
    UpdateProbe,
)

__all__ = ["PROBES", "Probe", *(probe.__name__ for probe in PROBES)]
