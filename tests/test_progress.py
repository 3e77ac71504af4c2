from kron_plugin.cli.curve import read_log


def test_a_log_tells_every_epoch_once(train, tmp_path):
    train(
        *("--task", "adding", "--steps", 6, "--train-examples", 22, "--eval-examples", 5),
        *("--arch", "kru", "--hidden-size", 8, "--batch-size", 4, "--max-epoch", 3),
        *("--criterion", "soft_unitary", "--optimizer", "kron_adam", "--lr", "1e-2"),
        *("--log-interval", 1),
    )
    records = read_log(tmp_path / "train.log")
    assert [r["epoch"] for r in records if "valid_num_updates" in r] == [1, 2, 3]
    updates = [r["num_updates"] for r in records if "num_updates" in r]
    assert updates == sorted(set(updates))
    assert len(updates) > 6
