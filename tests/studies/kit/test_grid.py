from poise.studies.kit.grid import part_of, run_each, run_grid, stage


def test_a_grid_gives_one_result_a_seed_and_reports_every_run():
    seen = []
    found = run_grid(lambda s, seed: (s, seed), ["a", "b"], (3, 4), lambda f, words: seen.append((f, words)))
    assert found == {"a": [("a", 3), ("a", 4)], "b": [("b", 3), ("b", 4)]}
    assert seen == [(0.25, "a, seed 3"), (0.5, "a, seed 4"), (0.75, "b, seed 3"), (1.0, "b, seed 4")]


def test_processes_give_the_same_in_the_same_order():
    args = (lambda s: s**2, [3, 1, 2], lambda f, words: None)
    assert list(run_each(*args, n_jobs=2).items()) == list(run_each(*args).items()) == [(3, 9), (1, 1), (2, 4)]


def test_a_part_of_the_work():
    seen = []
    run_each(abs, [-1, -2], part_of(lambda f, words: seen.append(f), 0.5, 0.9))
    assert seen == [0.7, 0.9]


def test_a_stage_names_the_part_that_it_is():
    told = []
    stage(lambda fraction, words: told.append((fraction, words)), "network, seed", 0.5, 1.0)(0.5, "3")
    assert told == [(0.75, "network, seed 3")]
