"""What "Small-scale proxies for large-scale Transformer training instabilities" claims, and the test of each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poise.studies.study import Claim, ClaimVerdict


def judge_sensitivity(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the ratio, and by whether the interval of the difference excludes none."""
    if n["ratio"] < 1.1:
        return "refuted"
    return "reproduced" if n["ratio"] >= 1.5 and n["p_better"] >= 0.975 else "partly"


def judge_high_lr(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the gap in loss."""
    if n["gap"] <= 0.02:
        return "refuted"
    return "reproduced" if n["gap"] >= 0.15 and n["p_better"] >= 0.975 else "partly"


def judge_logit_growth(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by logits, entropy and the bound that qk-norm should keep."""
    grown, collapsed = n["logit_plain"] > 1e3, n["entropy_plain"] < 0.1
    cured = n["logit_normed"] < 0.1 * n["logit_plain"]
    return _count([grown, collapsed, cured])


def judge_logit_limit(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by how the runs above the limit ended."""
    if n["diverged"] == n["runs"]:
        return "reproduced"
    return "partly" if n["diverged"] > 0 else "refuted"


def judge_forecast(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the distance between forecast and observation."""
    return "reproduced" if n["decades"] <= 0.35 else "partly" if n["decades"] <= 0.7 else "refuted"


def judge_gradient_rms(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the sign of both exponents."""
    return _count([n["over_lr"] < 0, n["over_size"] < 0])


def judge_epsilon(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the shrinking of updates, its absence at the usual epsilon, and the harm."""
    return _count([n["shrink"] < 0.5 < 0.95 < n["shrink_usual"], n["harm"] > 0 and n["p_worse"] >= 0.975])


def judge_output_drift(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the drift without z-loss and its absence with it."""
    return _count([n["mean_logit"] < -20, n["log_z_with"] < 1])


def judge_kappa(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the harm at the smaller scale and the loss beside bigrams at the larger."""
    # A model that is behind bigrams anyway says nothing with its loss beside theirs.
    return _count([n["harm"] > 0 and n["p_worse"] >= 0.975, n["over_bigram"] > 0 > n["usual_over_bigram"]])


def judge_left_out(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the difference of sensitivities and how sure its sign is."""
    if n["difference"] <= 0:
        return "refuted"
    return "reproduced" if n["p_better"] >= 0.975 else "partly"


def judge_mu_loss(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by what muParam gains in loss and in sensitivity."""
    return _count([n["gain"] <= 0.02, n["ratio"] < 1.1])


def judge_mu_logits(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the logits that are left."""
    if n["logit_mu"] <= 0.1 * n["logit_standard"]:
        return "refuted"
    return "reproduced" if n["logit_mu"] > 1e3 else "partly"


def judge_mu_full(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the worst run at the highest learning rate, and by what is gained at the best."""
    return _count([n["over_unigram"] < 0, n["gain"] <= 0.02])


def judge_no_effect(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the ratio, with the bounds that qk-norm's effect has: below 1.1 there is none, from 1.5 there is."""
    if n["ratio"] < 1.1:
        return "reproduced"
    return "refuted" if n["ratio"] >= 1.5 and n["p_apart"] >= 0.975 else "partly"


def _count(held: Sequence[bool]) -> ClaimVerdict:
    return "reproduced" if all(held) else "partly" if any(held) else "refuted"


CLAIMS = (
    Claim(
        "sensitivity",
        "qk-norm makes the final loss less sensitive to the learning rate.",
        "a strong reduction at every size (figure only)",
        "Reproduced if the sensitivity without is at least 1.5 times that with qk-norm and P(lower) >= 0.975; refuted "
        "below 1.1 times.",
        judge_sensitivity,
    ),
    Claim(
        "high-lr",
        "At a learning rate of 0.3 training is worse without qk-norm.",
        "with it a 1.2-billion-parameter model trains at 0.3",
        "Reproduced if the loss at the largest learning rate is worse by 0.15 or more without and P(worse) >= 0.975; "
        "refuted at 0.02 or less.",
        judge_high_lr,
    ),
    Claim(
        "logit-growth",
        "At high learning rates attention logits grow without bound, attention collapses, and qk-norm prevents it.",
        "logits above 1e4 before divergence",
        "At learning rate 0.1, end of training: largest logit above 1e3, entropy of the lowest head below 0.1, and a "
        "logit ten times lower with qk-norm. Reproduced if all hold, refuted if none.",
        judge_logit_growth,
    ),
    Claim(
        "logit-limit",
        "Every run whose attention logits pass 1e4 diverges.",
        "all such runs diverged",
        "Reproduced if all runs above 1e4 end no better than they began; partly if some do; refuted if none does.",
        judge_logit_limit,
    ),
    Claim(
        "forecast",
        "Attention logits of a larger model can be forecast from smaller ones by a quadratic in log size.",
        "crossing of 1e4 at 4.8 billion parameters and learning rate 0.01, as forecast",
        "Reproduced if the largest width, left out of the fit, is met within 0.35 decades; refuted beyond 0.7.",
        judge_forecast,
    ),
    Claim(
        "gradient-rms",
        "The gradient of the first MLP layer shrinks with the learning rate and with size.",
        "it reaches Adam's epsilon of 1e-8 at 4.8 billion parameters and learning rate 0.3",
        "Root mean square over learning rates (end of training) and over widths (early), both with qk-norm. "
        "Reproduced if both exponents are negative, refuted if neither is.",
        judge_gradient_rms,
    ),
    Claim(
        "epsilon",
        "When gradients are no larger than Adam's epsilon, updates vanish and the loss suffers.",
        "epsilon 1e-15 improves the largest model; 1e-6 diverges",
        "Forced here by epsilon 1e-3: updates below 0.5 of their size (above 0.95 at 1e-8), and "
        "the loss is worse with P >= 0.975. Reproduced if both hold, refuted if neither.",
        judge_epsilon,
    ),
    Claim(
        "output-drift",
        "Without weight decay output logits drift to very negative values, and z-loss prevents it.",
        "seen at every size; 2.4 million parameters at learning rate 0.1",
        "Forced by a long run: mean logit below -20 without z-loss, and |log Z| below 1 with it. Reproduced if both "
        "hold, refuted if neither.",
        judge_output_drift,
    ),
    Claim(
        "kappa",
        "Large logits do harm by themselves: a small model that is given the logit scale of a large one trains worse.",
        "worse near a scale of 1e3, worse than bigrams at 1e4 (10 million parameters)",
        "Learning rate 0.01, queries and keys rescaled: reproduced if the loss at 1e3 is higher than without with "
        "P >= 0.975, and at 1e4 higher than that of a bigram table, which the usual model beats; refuted if neither.",
        judge_kappa,
    ),
    Claim(
        "warm-up",
        "Warm-up lowers the sensitivity to the learning rate.",
        "lower, most for large models (figure only)",
        "Sensitivity over the highest learning rates, with qk-norm, without warm-up minus with it: reproduced if "
        "positive with P >= 0.975, refuted if not positive.",
        judge_left_out,
    ),
    Claim(
        "decay",
        "Independent weight decay lowers the sensitivity to the learning rate.",
        "lower (figure only)",
        "The same, without weight decay minus with it.",
        judge_left_out,
    ),
    Claim(
        "z-loss",
        "Without weight decay, z-loss lowers the sensitivity to the learning rate.",
        "lower (figure only)",
        "The same, both without weight decay, without z-loss minus with it.",
        judge_left_out,
    ),
    Claim(
        "mu-optimum",
        "muParam (simple) keeps the best learning rate where it is when the model becomes wider.",
        "the optimum is stabilised (figure only)",
        "With qk-norm, distance in decades between the best learning rates of the narrow and the wide model, without "
        "muParam minus with it: reproduced if positive with P >= 0.975, refuted if not positive.",
        judge_left_out,
    ),
    Claim(
        "mu-loss",
        "muParam (simple) lowers neither the loss nor the sensitivity to the learning rate.",
        "no improvement of either (figure only)",
        "Wide model with qk-norm: the best loss gains 0.02 or less, and the sensitivity without is less than 1.1 times "
        "that with muParam. Reproduced if both hold, refuted if neither.",
        judge_mu_loss,
    ),
    Claim(
        "mu-logits",
        "muParam (simple) does not replace qk-norm: without it attention logits still grow.",
        "still unstable (figure only)",
        "Wide model, learning rate 0.1, no qk-norm: reproduced if the largest logit passes 1e3 with muParam too, "
        "refuted if muParam makes it ten times lower.",
        judge_mu_logits,
    ),
    Claim(
        "mu-full",
        "muParam (full) with qk-norm trains at a learning rate of 1, but is no better at the best one.",
        "trains at 1; no better (figure only)",
        "Every run at 1 ends below the loss of the characters' frequencies, and the best loss gains 0.02 or less. "
        "Reproduced if both hold, refuted if neither.",
        judge_mu_full,
    ),
    Claim(
        "size",
        "The sensitivity to the learning rate rises with size, also with qk-norm.",
        "rises (figure only)",
        "Sensitivity of the wide model minus that of the narrow one: reproduced if positive with P >= 0.975, refuted "
        "if not positive.",
        judge_left_out,
    ),
    Claim(
        "depth",
        "Sensitivity rises faster with depth than with width.",
        "faster (figure only)",
        "With qk-norm, the deep model's sensitivity minus that of the wide one, which has as many parameters: "
        "reproduced if positive with P >= 0.975, refuted if not positive.",
        judge_left_out,
    ),
    Claim(
        "batch",
        "The batch size does not change the sensitivity to the learning rate.",
        "no effect from 256 to 1024 (figure only)",
        "With qk-norm, batch four times larger: reproduced if the larger sensitivity is less than 1.1 times the "
        "smaller, refuted from 1.5 times with P >= 0.975.",
        judge_no_effect,
    ),
    Claim(
        "steps",
        "The number of training steps does not change the sensitivity to the learning rate.",
        "no effect from 5e4 to 2e5 (figure only)",
        "The same, for half and twice as many steps.",
        judge_no_effect,
    ),
)
