"""Laws of what is said about this machine's processor."""

import pytest

from ollama_zmq.kernels.cpu.processor import allowed_cpus, cpu_name, default_threads


def test_the_name_is_the_first_processor_s(tmp_path):
    (tmp_path / "cpuinfo").write_text("vendor_id : X\nmodel name\t: Fast 9000\nmodel name\t: Other\n")
    assert cpu_name(tmp_path / "cpuinfo") == "Fast 9000"


@pytest.mark.parametrize("content", [None, "", "flags : fpu\n"])
def test_a_processor_without_a_name_is_called_by_its_architecture(tmp_path, content):
    path = tmp_path / "cpuinfo"
    if content is not None:
        path.write_text(content)
    assert cpu_name(path)


@pytest.fixture
def cgroups(tmp_path):
    """A tree of control groups in which this process is in ``/box/job``."""
    (tmp_path / "tree" / "box" / "job").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/box/job\n")
    return tmp_path


@pytest.mark.parametrize("folder", ["", "box", "box/job"])
@pytest.mark.parametrize(
    ("quota", "threads"),
    [("100000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", None), ("nonsense", None), ("1 0", None)],
)
def test_a_control_group_limits_the_threads_of_all_below(cgroups, folder, quota, threads):
    (cgroups / "tree" / folder / "cpu.max").write_text(quota)
    assert default_threads(cgroups / "tree", cgroups / "own") == (threads or len(allowed_cpus()))


def test_the_least_of_several_limits_counts(cgroups):
    (cgroups / "tree" / "cpu.max").write_text("max 100000")
    (cgroups / "tree" / "box" / "cpu.max").write_text("100000 100000")
    (cgroups / "tree" / "box" / "job" / "cpu.max").write_text("800000 100000")
    assert default_threads(cgroups / "tree", cgroups / "own") == 1


def test_without_a_control_group_every_allowed_cpu_has_a_thread(tmp_path):
    assert default_threads(tmp_path / "absent", tmp_path / "absent too") == len(allowed_cpus())
