"""Recommenders whose lists change: how much, for whom, because of which rows, and what keeps them stable."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.recsys.average_overlap import average_overlap
    from poise.recsys.event_log import EventLog
    from poise.recsys.interaction_graph import InteractionGraph
    from poise.recsys.next_item_accuracy import NextItemAccuracy, next_item_accuracy
    from poise.recsys.perturb import perturb
    from poise.recsys.rank_list_sensitivity import RankListSensitivity, rank_list_sensitivity
    from poise.recsys.ranks import mid_ranks
    from poise.recsys.rbo import rbo
    from poise.recsys.topk_jaccard import topk_jaccard

__all__ = [
    "EventLog",
    "InteractionGraph",
    "NextItemAccuracy",
    "RankListSensitivity",
    "average_overlap",
    "mid_ranks",
    "next_item_accuracy",
    "perturb",
    "rank_list_sensitivity",
    "rbo",
    "topk_jaccard",
]

lazy_front(__name__)
