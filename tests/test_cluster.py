"""What options, Slurm and torchrun say about a process: tables of variables in, places out."""

from __future__ import annotations

import re

import pytest

from denoise.cluster import Spread, host_names, place_of, speaks, spread_of, tasks_per_node, was_restarted
from denoise.errors import ClusterError

# Options. ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 2, "rendezvous": "a:1"}, r"--node-rank is missing; with --nodes 2 .* 0 to 1"),
        ({"nodes": 2, "node_rank": 2, "rendezvous": "a:1"}, r"--node-rank is 2; with --nodes 2 .* 0 to 1"),
        ({"nodes": 2, "node_rank": -1, "rendezvous": "a:1"}, r"--node-rank is -1"),
        ({"nodes": 2, "node_rank": 0}, r"--nodes 2 needs --rendezvous HOST:PORT.*node01:29500"),
        ({"nodes": 0}, r"--nodes is 0"),
        ({"node_rank": 1}, r"--node-rank is of use with several machines only.*--nodes"),
        ({"rendezvous": "a:1"}, r"--rendezvous is of use with several machines only"),
        ({"nodes": 1, "rendezvous": "a:1"}, r"--rendezvous is of use"),
        ({"max_restarts": -1}, r"--max-restarts is -1"),
        *(
            ({"nodes": 2, "node_rank": 0, "rendezvous": wrong}, rf"--rendezvous {re.escape(wrong)} is not HOST:PORT")
            for wrong in ("node01", "node01:", ":29500", "node01:0", "node01:65536", "node01:x", "node01:-1")
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ClusterError, match=message):
        Spread(**options)


@pytest.mark.parametrize(
    ("rendezvous", "point"),
    [("node01:29500", ("node01", 29500)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[fe80::1]:29500", ("fe80::1", 29500))],
)
def test_a_meeting_point_is_a_host_and_a_port(rendezvous, point):
    assert Spread(2, 1, rendezvous).meeting_point == point


# Slurm's lists. ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("node7", ["node7"]),
        ("node01,node02", ["node01", "node02"]),
        ("node[01-03,7],gpu1", ["node01", "node02", "node03", "node7", "gpu1"]),
        ("gpu1,node[9-11]", ["gpu1", "node9", "node10", "node11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("rack[1-2]n[1-2]", ["rack1n1", "rack1n2", "rack2n1", "rack2n2"]),
        ("r[1,3]-ib.site.org", ["r1-ib.site.org", "r3-ib.site.org"]),
        ("cn-1-2", ["cn-1-2"]),
    ],
)
def test_a_node_list_names_its_hosts_in_order(listed, names):
    assert host_names(listed) == names


@pytest.mark.parametrize(
    "listed", ["", "[", "node[", "node[]", "node[1-", "node[3-1]", "node[a-b]", "node[1-999999]", "]x"]
)
def test_what_is_no_node_list_is_refused_with_what_to_do(listed):
    with pytest.raises(ClusterError, match="is not understood; set MASTER_ADDR"):
        host_names(listed)


@pytest.mark.parametrize(
    ("listed", "counts"), [("4", (4,)), ("2(x3),1", (2, 2, 2, 1)), ("1,2,3", (1, 2, 3)), ("1(x2),8(x2)", (1, 1, 8, 8))]
)
def test_tasks_are_counted_node_by_node(listed, counts):
    assert tasks_per_node(listed) == counts


@pytest.mark.parametrize("listed", ["", "x", "2(x)", "2(3)", "2,", "-1", "9999999999"])
def test_what_is_no_number_of_tasks_is_refused(listed):
    with pytest.raises(ClusterError, match="tasks per node"):
        tasks_per_node(listed)


# Slurm's environments: as its manual describes them, and as seen in batch scripts and shells. -------------------------

BATCH = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "node[01-02]",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
ONE_PER_NODE = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # the shell of salloc
        BATCH,
        {**STEP, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's interactive step
        {**STEP, "SLURM_STEP_ID": "4294967291"},  # the step of the batch script
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},  # srun --pty bash, srun -n 1
        {"RANK": "3"},  # left over from something else
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    ],
    ids=["nothing", "salloc", "sbatch", "interactive step", "batch step", "one task", "RANK alone", "a world of one"],
)
def test_a_process_that_has_no_partners_waits_for_none(environ):
    assert place_of(environ) is None
    assert spread_of(Spread(), environ) == Spread()
    assert speaks(environ)


@pytest.mark.parametrize(
    ("node", "local", "procid", "rank"),
    [(0, 0, 0, 0), (0, 3, 3, 3), (1, 0, 4, 4), (1, 3, 7, 7), (1, 0, 1, 4), (0, 1, 2, 1)],
    ids=["first", "block 3", "block 4", "last", "cyclic 1", "cyclic 2"],
)
def test_a_task_of_srun_has_its_place_node_by_node_however_slurm_deals_them_out(node, local, procid, rank):
    names = {"SLURM_NODEID": node, "SLURM_LOCALID": local, "SLURM_PROCID": procid}
    place = place_of({**STEP, **{name: str(value) for name, value in names.items()}})
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (rank, 8, local, 4)
    assert (place.address, place.port_is_open, place.started_by) == ("node01", False, "srun")
    assert speaks({**STEP, "SLURM_PROCID": str(procid)}) == (procid == 0)


def test_uneven_nodes_and_steps_on_a_part_of_the_job_count_as_the_step_says():
    environ = {
        **STEP,
        "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
        "SLURM_STEP_NODELIST": "node[02-05]",
        "SLURM_NODEID": "3",
        "SLURM_LOCALID": "0",
    }
    place = place_of(environ)
    assert place is not None
    assert (place.rank, place.size, place.local_size, place.address) == (6, 7, 1, "node02")


def test_jobs_and_steps_that_share_a_node_meet_at_different_ports():
    def port(job: int, step: int) -> int:
        place = place_of({**STEP, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        assert place is not None
        return place.port

    ports = [port(job, step) for job in range(1000, 1020) for step in range(5)]
    assert len(set(ports)) == len(ports)
    assert all(20000 <= p < 30000 for p in ports)


def test_the_users_own_address_and_port_come_first():
    place = place_of({**STEP, "MASTER_ADDR": "node01-ib", "MASTER_PORT": "12345"})
    assert place is not None
    assert (place.address, place.port) == ("node01-ib", 12345)


def test_one_task_per_node_starts_the_processes_of_its_node():
    environ = {**ONE_PER_NODE, "SLURM_NODEID": "1", "SLURM_PROCID": "1", "MASTER_PORT": "12345"}
    assert place_of(environ) is None
    assert spread_of(Spread(max_restarts=3), environ) == Spread(2, 1, "node01:12345", 3)
    assert not spread_of(Spread(), environ).leads(environ)
    assert spread_of(Spread(), {**ONE_PER_NODE}).leads(ONE_PER_NODE)


def test_a_user_who_says_one_node_is_not_made_to_wait_for_the_other_tasks():
    assert spread_of(Spread(nodes=1), ONE_PER_NODE) == Spread(nodes=1)
    assert Spread(nodes=1).leads({**STEP, "SLURM_PROCID": "5"})


def test_variables_of_slurm_that_contradict_each_other_are_named():
    with pytest.raises(ClusterError, match=r"task 7 of node 0.*4\(x2\).*SLURM_LOCALID"):
        place_of({**STEP, "SLURM_LOCALID": "7"})


# torchrun, and others that speak like it. ----------------------------------------------------------------------------

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node01",
    "MASTER_PORT": "29400",
}


def test_under_torchrun_the_place_is_what_it_says_also_within_a_step_of_srun():
    for environ in (TORCHRUN, {**ONE_PER_NODE, **TORCHRUN}):
        place = place_of(environ)
        assert place is not None
        assert (place.rank, place.size, place.local_rank, place.local_size) == (5, 8, 1, 4)
        assert (place.address, place.port, place.port_is_open) == ("node01", 29400, True)
        assert spread_of(Spread(), environ) == Spread()
        assert not speaks(environ)
    assert not was_restarted(TORCHRUN)
    assert was_restarted({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"})


def test_another_launcher_that_sets_the_usual_variables_is_joined():
    environ = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    place = place_of(environ)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size, place.port_is_open) == (5, 8, 0, 1, False)
