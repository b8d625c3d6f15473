"""What a launcher's environment says."""

import pytest

from drrho.runtime.launch import Launch, is_follower, require_one_process

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "gpu[003-007,012]",
}


def test_torchrun():
    launch = Launch.from_environment(TORCHRUN)
    assert launch == Launch(rank=3, size=8, local_rank=1, meeting="env://")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[003-007,012]", "gpu003"),
        ("gpu[003-007].cluster,other", "gpu003.cluster"),
        ("node-a1,node-a2", "node-a1"),
        ("single", "single"),
        ("rack2-[11,15]", "rack2-11"),
    ],
)
def test_slurm_meets_on_the_first_machine_of_its_step(nodes, host):
    launch = Launch.from_environment(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert launch is not None
    assert (launch.rank, launch.size, launch.local_rank) == (5, 8, 1)
    assert launch.meeting == f"tcp://{host}:{20_000 + 1234567 % 20_000}"


def test_slurm_meets_where_it_is_told():
    launch = Launch.from_environment(SLURM | {"MASTER_ADDR": "other", "MASTER_PORT": "123"})
    assert launch is not None
    assert launch.meeting == "tcp://other:123"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A batch script without srun is one process, whatever it asked for.
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process_is_no_launch(environment):
    assert Launch.from_environment(environment) is None


def test_what_makes_no_sense_is_named():
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE are set, but not LOCAL_RANK"):
        Launch.from_environment({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match="RANK must be a whole number, got 'x'"):
        Launch.from_environment(TORCHRUN | {"RANK": "x"})
    with pytest.raises(ValueError, match="list of nodes"):
        Launch.from_environment(SLURM | {"SLURM_STEP_NODELIST": ""})


def test_commands_of_one_process_refuse_several(monkeypatch):
    require_one_process("drrho compare")
    assert not is_follower()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert is_follower()
    with pytest.raises(ValueError, match="`drrho compare` works in one process"):
        require_one_process("drrho compare")
