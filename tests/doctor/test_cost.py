"""What watching a run has cost, in words."""

import json

import pytest

from poise.doctor.cost import Cost
from poise.tools.clock import Seconds


def test_a_sentence_says_what_was_added_to_what():
    cost = Cost(Seconds(0.3, 0.3), Seconds(0.2, 0.2), Seconds(0.5, 0.5), Seconds(11.0, 11.0))
    assert cost.sentence() == "1.00 s to 10.0 s (10.0%): start 0.30 s, steps 0.20 s, report 0.50 s"
    assert cost.fraction == pytest.approx(0.1)


def test_cpu_time_is_said_where_more_of_it_was_added_than_of_time():
    cost = Cost(Seconds(0.5, 0.8), total=Seconds(10.5, 4.8))
    assert "(5.0%, 20.0% of CPU time)" in cost.sentence()
    assert "CPU" not in Cost(Seconds(0.5, 0.5), total=Seconds(10.5, 20.5)).sentence()


def test_before_the_report_is_written_its_cost_is_said_to_follow():
    assert Cost(total=Seconds(1.0, 1.0)).sentence().endswith("steps 0.00 s, and then this report")


def test_nothing_is_divided_by_what_is_not_there():
    assert Cost(Seconds(1.0, 1.0), total=Seconds(1.0, 0.0)).fraction == 0.0


def test_a_cost_survives_json():
    cost = Cost(Seconds(0.25, 0.5), Seconds(1.0, 2.0), total=Seconds(3.0, 4.0))
    assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost


@pytest.mark.parametrize(("wall", "cpu", "busy"), [(2.0, 1.0, 1.0), (1.0, 4.0, 1.0), (1.0, -2.0, 0.0)])
def test_busy_seconds_are_the_fewer_ones(wall, cpu, busy):
    assert Seconds(wall, cpu).busy == busy
