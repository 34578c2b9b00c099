"""What measures a sampled training step: each probe turns one kind of value into signals."""

from poise.doctor.probes.activations import ActivationProbe
from poise.doctor.probes.adam import AdamProbe
from poise.doctor.probes.adversary import AdversaryProbe
from poise.doctor.probes.attention import AttentionProbe
from poise.doctor.probes.batch import BatchProbe
from poise.doctor.probes.batch_norm import BatchNormProbe
from poise.doctor.probes.blocks import BlockProbe
from poise.doctor.probes.chains import ChainProbe
from poise.doctor.probes.contracts.accumulation import AccumulationProbe
from poise.doctor.probes.contracts.examples import ExampleProbe
from poise.doctor.probes.contracts.freezing import FreezingProbe
from poise.doctor.probes.contracts.loss_inputs import LossInputProbe
from poise.doctor.probes.contracts.loss_shapes import LossShapeProbe
from poise.doctor.probes.contracts.lost_gradients import LostGradientProbe
from poise.doctor.probes.contracts.mixing import MixingProbe
from poise.doctor.probes.contracts.residuals import ResidualProbe
from poise.doctor.probes.contracts.summation import SummationProbe
from poise.doctor.probes.contracts.targets import TargetProbe
from poise.doctor.probes.contracts.undone import UndoneProbe
from poise.doctor.probes.embedding_spread import EmbeddingSpreadProbe
from poise.doctor.probes.gradients import GradientProbe
from poise.doctor.probes.guess import GuessProbe
from poise.doctor.probes.hyperparameters import HyperparameterProbe
from poise.doctor.probes.latent import LatentProbe
from poise.doctor.probes.learned_scale import LearnedScaleProbe
from poise.doctor.probes.logits import LogitProbe
from poise.doctor.probes.modes import ModeProbe
from poise.doctor.probes.orphans import OrphanProbe
from poise.doctor.probes.policy import PolicyProbe
from poise.doctor.probes.probe import Probe
from poise.doctor.probes.relation import RelationProbe
from poise.doctor.probes.scale_invariance import ScaleInvarianceProbe
from poise.doctor.probes.sharpness import SharpnessProbe
from poise.doctor.probes.updates import UpdateProbe

PROBES: tuple[type[Probe], ...] = (
    AccumulationProbe,
    ActivationProbe,
    AdamProbe,
    AdversaryProbe,
    AttentionProbe,
    BatchNormProbe,
    BatchProbe,
    BlockProbe,
    ExampleProbe,
    ChainProbe,
    FreezingProbe,
    EmbeddingSpreadProbe,
    GradientProbe,
    GuessProbe,
    HyperparameterProbe,
    LatentProbe,
    LearnedScaleProbe,
    LogitProbe,
    LossInputProbe,
    LossShapeProbe,
    LostGradientProbe,
    MixingProbe,
    ModeProbe,
    OrphanProbe,
    PolicyProbe,
    RelationProbe,
    ResidualProbe,
    ScaleInvarianceProbe,
    SharpnessProbe,
    SummationProbe,
    TargetProbe,
    UndoneProbe,
    UpdateProbe,
)

__all__ = ["PROBES", "Probe", *(probe.__name__ for probe in PROBES)]
