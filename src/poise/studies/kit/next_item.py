"""The log and the network that studies of recommenders share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from poise.data import load_movielens_100k
from poise.recsys import EventLog, fit_recommender, items_before
from poise.recsys.item_embedding import TiedItemEmbedding
from poise.studies.kit.one_thread import one_thread

USERS, FEWEST = 150, 5
WIDTH, LENGTH, LR = 32, 50, 5e-3


@dataclass(frozen=True, slots=True, eq=False)
class NextItemTask:
    """A log to train on, and the events to predict.

    Args:
        train: the first nine tenths of each user's events.
        contexts: the items before each test event, from the unchanged log.
        answers: the item of each test event.
        test_user: its user.
    """

    train: EventLog
    contexts: Int[Tensor, "events time"]
    answers: Int[np.ndarray, " events"]
    test_user: Int[np.ndarray, " events"]


@cache
def movielens_task(users: int = USERS) -> NextItemTask:
    """Return the task on the first users of MovieLens 100k, items with at least five ratings.

    Args:
        users: number of users.

    Raises:
        DataNotFound: if the data are not on this machine.
    """
    ratings = load_movielens_100k().ratings
    few = ratings[ratings.user_id <= users]
    few = few[few.groupby("item_id").item_id.transform("size") >= FEWEST]
    # Half of the times tie: users enter many ratings at once. They are ordered by item, and no warning is needed here.
    few = few.sort_values(["timestamp", "user_id", "item_id"], kind="stable").assign(time=np.arange(len(few)))
    log = EventLog.from_frame(few, "user_id", "item_id", "time")
    held = np.flatnonzero(log.held_out(0.1))
    return NextItemTask(log.take(~log.held_out(0.1)), items_before(log, held, LENGTH), log.item[held], log.user[held])


class LSTMRecommender(nn.Module):
    """The LSTM of the papers, scoring every item at every position.

    Args:
        n_items: number of items.
        dim: width of embeddings and states.
    """

    def __init__(self, n_items: int, dim: int = WIDTH) -> None:
        super().__init__()
        self.items = TiedItemEmbedding(n_items, dim)
        self.rnn = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, items: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time items"]:
        """Return scores; negative numbers in ``items`` are padding."""
        return self.items.score(self.rnn(self.items.embed(items))[0])


def trained(log: EventLog, epochs: int, seed: int) -> LSTMRecommender:
    """Train a network whose initial weights and batches come from the seed."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LSTMRecommender(len(log.items))
        fit_recommender(model, log, epochs=epochs, lr=LR, length=LENGTH, seed=seed)
        return model


@torch.no_grad()
def scores_of(model: nn.Module, task: NextItemTask) -> Float[np.ndarray, "events items"]:
    """Return the scores of all items at every test event."""
    model.eval()
    with one_thread():
        return torch.cat([model(part)[:, -1] for part in task.contexts.split(256)]).numpy()
