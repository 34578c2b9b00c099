"""Recommenders whose lists change: how much, for whom, because of which rows, and what keeps them stable."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.recsys.average_overlap import average_overlap
    from poise.recsys.event_log import EventLog
    from poise.recsys.finest import Finest
    from poise.recsys.fit_recommender import fit_recommender, score_users
    from poise.recsys.gru_recommender import GRURecommender
    from poise.recsys.interaction_graph import InteractionGraph
    from poise.recsys.next_item_accuracy import NextItemAccuracy, next_item_accuracy
    from poise.recsys.perturb import perturb
    from poise.recsys.perturbation_sampler import PerturbationSampler
    from poise.recsys.rank_list_sensitivity import RankListSensitivity, rank_list_sensitivity
    from poise.recsys.rank_preserving_loss import RankPreservingLoss
    from poise.recsys.ranks import mid_ranks
    from poise.recsys.rbo import rbo
    from poise.recsys.recommender_audit import audit_recommender
    from poise.recsys.reference_ranks import ReferenceRanks
    from poise.recsys.sasrec import SASRec
    from poise.recsys.sequence_windows import SequenceWindows, items_before, last_items
    from poise.recsys.topk_jaccard import topk_jaccard

__all__ = [
    "EventLog",
    "Finest",
    "GRURecommender",
    "InteractionGraph",
    "NextItemAccuracy",
    "PerturbationSampler",
    "RankListSensitivity",
    "RankPreservingLoss",
    "ReferenceRanks",
    "SASRec",
    "SequenceWindows",
    "audit_recommender",
    "average_overlap",
    "fit_recommender",
    "items_before",
    "last_items",
    "mid_ranks",
    "next_item_accuracy",
    "perturb",
    "rank_list_sensitivity",
    "rbo",
    "score_users",
    "topk_jaccard",
]

lazy_front(__name__)
