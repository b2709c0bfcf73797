"""The file of ``zray up``: what is filled in, and what is refused with which words."""

from __future__ import annotations

import pytest

from zray.launch.cluster_file import ClusterFileError, load, parse
from zray.launch.orders import REPORT_MARK, HostReport, encode_report, find_report
from zray.launch.ssh import ssh_command

WHOLE = """
name = "lab"
port = 7000
user = "ada"
ssh_port = 2222
identity_file = "~/.ssh/lab"
python = "~/venv/bin/python"
ssh_options = ["ProxyJump=bastion"]
environment = { ZRAY_SPILL = "yes", LEVEL = "1" }
timeout_s = 5

[head]
host = "10.0.0.1"
num_cpus = 0

[[nodes]]
host = "10.0.0.2"
resources = { disk = 2.5 }

[[nodes]]
host = "worker-3.example.org"
user = "bob"
ssh_port = 22
python = "conda run -n mine python"
ssh_options = ["ProxyJump=none"]
environment = { LEVEL = "2" }
object_store_memory = 1_000_000
address = "10.1.0.3"
node_port = 7100
"""


def test_a_host_has_what_the_top_says_and_what_it_says_itself() -> None:
    cluster = parse(WHOLE.encode(), "lab.toml")
    head, second, third = cluster.hosts
    assert (cluster.name, cluster.port, cluster.timeout_s) == ("lab", 7000, 5)
    assert (head.host, head.user, head.ssh_port, head.num_cpus) == ("10.0.0.1", "ada", 2222, 0)
    assert (second.python, second.resources) == ("~/venv/bin/python", {"disk": 2.5})
    assert second.environment == {"ZRAY_SPILL": "yes", "LEVEL": "1"}
    assert (third.user, third.ssh_port, third.python) == ("bob", 22, "conda run -n mine python")
    assert third.environment == {"ZRAY_SPILL": "yes", "LEVEL": "2"}
    assert third.ssh_options == ["ProxyJump=none", "ProxyJump=bastion"], "ssh takes the first"
    assert (third.address, third.node_port, third.object_store_memory) == ("10.1.0.3", 7100, 1_000_000)


def test_the_smallest_file_is_named_after_itself(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "tiny.toml"
    path.write_text('[head]\nhost = "h"\n')
    cluster = load(str(path))
    assert (cluster.name, len(cluster.hosts), cluster.hosts[0].python) == ("tiny", 1, "python3")


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("port =", "prot =", "at the top: there is no key 'prot'; allowed are environment, gcs_replicas, "),
        ("num_cpus", "cpus", "in [head]: there is no key 'cpus'; allowed are address, environment, host, "),
        ("node_port", "nodeport", "in [[nodes]] number 2: there is no key 'nodeport'; allowed are "),
        ("port = 7000", "port = 70000", "`int` <= 65534 - at `$.port`"),
        ("port = 7000", 'port = "7000"', "Expected `int`, got `str` - at `$.port`"),
        ('name = "lab"', 'name = "The Lab"', "at `$.name`"),
        ("num_cpus = 0", "num_cpus = -1", "`float` >= 0.0 - at `$.head.num_cpus`"),
        ("num_cpus = 0", "num_cpus = nan", "at `$.head.num_cpus`"),
        ("num_cpus = 0", "num_cpus = 1e30", "host 10.0.0.1: "),
        ("disk = 2.5", "CPU = 2", "host 10.0.0.2: give CPU as num_cpus"),
        ('host = "10.0.0.2"', 'host = "-oProxyCommand=reboot"', "at `$.nodes[0].host`"),
        ('user = "ada"', 'user = "-x"', "at `$.user`"),
        ('"ProxyJump=none"', '"ProxyJump"', "at `$.nodes[1].ssh_options[0]`"),
        ("LEVEL = \"2\"", '"LE VEL" = "2"', "environment"),
        ('host = "10.0.0.2"', 'host = "10.0.0.1"', "host 10.0.0.1 is there twice"),
        ("[head]", "[[head]]", "Expected `object`, got `array` - at `$.head`"),
        ("[head]", "[head", "lab.toml: "),
        ("timeout_s = 5", "timeout_s = 0", "at `$.timeout_s`"),
        ("timeout_s = 5", "gcs_replicas = 0", "at `$.gcs_replicas`"),
        ("num_cpus = 0", "labels = { zone = 1 }", "Expected `str`, got `int` - at `$.head.labels"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_file_and_key(before: str, after: str, complaint: str) -> None:
    assert WHOLE.count(before) >= 1
    with pytest.raises(ClusterFileError) as refused:
        parse(WHOLE.replace(before, after, 1).encode(), "lab.toml")
    assert str(refused.value).startswith("lab.toml: ")
    assert complaint in str(refused.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ClusterFileError):
        parse(b"\xff\xfe", "lab.toml")


def test_ssh_is_asked_for_nothing_that_waits_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    entry = parse(WHOLE.encode(), "lab.toml").hosts[2]
    command = ssh_command(entry, 5.0)
    assert command[-3:] == ["--", "worker-3.example.org", "conda run -n mine python -m zray.launch.host"]
    for words in (["-o", "BatchMode=yes"], ["-p", "22"], ["-l", "bob"], ["-o", "IdentitiesOnly=yes"]):
        assert any(command[i : i + 2] == words for i in range(len(command))), words


def test_a_report_is_found_among_greetings_and_nonsense_is_none() -> None:
    report = HostReport(node_id="ab", was_running=True)
    assert find_report(f"Welcome!\n{encode_report(report)}\nBye.\n") == report
    assert find_report(f"no newline at its end{encode_report(report)}") == report
    for output in ("", "Welcome!\n", f"{REPORT_MARK}\n", f"{REPORT_MARK}[1]\n", f"{REPORT_MARK}{{"):
        assert find_report(output) is None
