"""The list of studies. A new study is one file beside this one and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from poise.studies.kit.study import Study
from poise.tools.nearest_name import did_you_mean

# Titles stand here as well so that a listing imports no study (and with it no torch).
STUDIES: dict[str, str] = {
    "adamp": "Do tangential steps stop momentum from growing the norm of scale-invariant weights?",
    "bagging-stability": "Does averaging over bags keep predictions stable when a row is left out?",
    "catalysis": "Are steady states of a catalytic pore attracting, and how fast?",
    "causal-minimax": "Is a predictor safer in new environments if it drops some of its stable inputs?",
    "control-structure": "Does a learned factorisation keep a tracking controller stable with 100 samples?",
    "curvature-engine": "Do gradient descent and Adam train at the edge of stability, and is the ruler right?",
    "data-feedback-loops": "Does a classifier that is trained on its own labels amplify a bias?",
    "disciplined-hyperparameters": "Do a range test and one cycle take the place of a grid of hyper-parameters?",
    "fair-coins": "Do fair coins land on the side they started from?",
    "finest": "Does rank-preserving fine-tuning keep recommendations stable?",
    "fusing": "Is the average of fine-tuned models a better start than their ancestor?",
    "generative-augmentation": "Do rows of a generator that was fitted to the same data help a classifier?",
    "gfs-sharpness": "Does gradient descent lower the sharpness of gradient-flow solutions?",
    "gradient-starvation": "Does a strong feature keep weaker ones from being learned?",
    "grokking-stability": "Does rounding stop networks from learning before they generalise?",
    "heterogeneous-shift": "Does a shift of inputs cost as much as these inputs were hard to learn?",
    "homeostatic": "Does a learning rate that recognised classes raise and lower adapt better to drifting labels?",
    "l2-normalization": "Does weight decay of normalised weights do more than set a learning rate?",
    "layer-norm": "Does layer normalisation speed up recurrent networks and work with batches of 4?",
    "loss-curvature": "Does sharpness early in training say which learning rates train?",
    "m-cbpe": "Can the performance of a deployed classifier be estimated under shift without labels?",
    "neuroevolution-cate": "Do evolved features lower the error of effect estimates in small samples?",
    "r-learner-ivw": "Do inverse-variance weights make estimates of varying effects better?",
    "rank-list-sensitivity": "Does one deleted interaction change the recommendations of all users?",
    "robust-counterfactuals": "Does advice that is locally stable survive retraining of the network?",
    "sam-eos": "Does SAM settle at an edge of stability of its own?",
    "sdd": "Do decoupled linear maps make post-norm networks hard to break?",
    "second-order-regression": "Do quadratic models sharpen to the edge of stability?",
    "selective-ate-iv": "Is an average effect found with an instrument that affects the outcome directly?",
    "self-correcting-loops": "Does correcting its samples stabilise a generator that is trained on them?",
    "sgd-dynamical-stability": "Does a large learning rate keep SGD at flat minima that generalise?",
    "sgd-stability-geometry": "Does the coherence of examples predict the largest stable learning rate of SGD?",
    "small-scale-proxies": "Do small Transformers show the instabilities of large ones?",
    "soap": "Does Adam in Shampoo's eigenbasis need fewer steps than AdamW?",
    "softmax-masking": "Does masking the classes of other tasks keep a classifier from forgetting them?",
    "spectral-regularization": "Does a penalty on singular values keep a network trainable over many tasks?",
    "spike-no-more": "Do small sub-layers and a large shortcut keep gradients of Transformers small?",
    "stability-gap-metrics": "Does evaluation after every update show drops that evaluation after every task hides?",
    "stability-gap-mitigation": "Do four remedies keep old classes usable while new ones are learned?",
    "stable-resnet": "Do factors on residual branches let networks train at any depth?",
    "temporal-ensembles": "Does serving averaged weights remove the drops of a model that keeps learning?",
    "training-doctor": "Does the doctor name the cause of a failed training run, and leave healthy ones alone?",
    "two-perspectives": "Does projecting gradients add to training on old and new data together?",
    "unified-norm": "Does a norm that is a constant scale at inference train as well as layer norm?",
    "weight-decay": "Does weight decay act through the dynamics of training rather than as a penalty?",
}


def load_study(slug: str) -> Study[Any]:
    """Return the study named ``slug``, importing its file.

    Args:
        slug: name of a study, for example ``"fair-coins"``.

    Raises:
        ValueError: if there is no such study; the nearest names are offered.
    """
    if slug not in STUDIES:
        raise ValueError(f"slug must name a study, got {slug!r}; {did_you_mean(slug, STUDIES)}")
    study: Study[Any] = import_module(f"poise.studies.{slug.replace('-', '_')}").STUDY
    return study
