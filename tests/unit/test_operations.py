"""docs/operations.md and deploy/grafana speak of what there is: the same metrics, and the same reasons, as the code."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import node_agent.metrics
import node_agent.tunnel.traffic
import pool_manager.metrics
import scheduler.metrics
import service_kit.joint_pages
import service_kit.rpc_metrics
from sandpool.v1 import pool_pb2, session_pb2
from scheduler.guest_errors import ALLOWED
from service_kit import errors, metrics

DECLARED_IN = (
    node_agent.metrics,
    node_agent.tunnel.traffic,
    pool_manager.metrics,
    scheduler.metrics,
    service_kit.joint_pages,
    service_kit.rpc_metrics,
)
ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/operations.md").read_text()
GRAFANA = ROOT / "deploy/grafana"
NAME = re.compile(r"\b(?:sandpool|process)_[a-z_]+\b")
CLASSES = {kind.__name__: code.name for code, kind in errors.CLASSES.items()}


def rows(title: str) -> list[list[str]]:
    """The cells of every row of the table below a heading that begins so."""
    _, found, section = DOCS.partition(f"\n## {title}")
    assert found, title
    lines = section.partition("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("| ")][1:]


def declared() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each metric of the code, by name."""
    found = {}
    for module in DECLARED_IN:
        for value in vars(module).values():
            if isinstance(value, metrics.Derived):
                kind = "counter" if value.name.endswith("_total") else "gauge"
                found[value.name] = (kind, set(value.labels))
    for collector in metrics.REGISTRY._collector_to_names:
        if isinstance(collector, metrics.Counter | metrics.Histogram):
            total = "_total" if isinstance(collector, metrics.Counter) else ""
            found[collector._name + total] = (collector._type, set(collector._labelnames))
    return found


def words(cell: str) -> set[str]:
    """Of a list in a cell."""
    return {word for word in re.split(r"[ ,`]+", cell) if word}


def test_every_metric_is_documented_as_it_is() -> None:
    documented = {row[0].strip("`"): (row[1], words(row[2])) for row in rows("Metrics")}
    assert documented == declared()


def test_names_have_their_unit_and_labels_are_few() -> None:
    for name, (kind, labels) in declared().items():
        assert name.startswith("sandpool_") and (kind == "counter") == name.endswith("_total")
        assert kind != "histogram" or name.endswith(("_seconds", "_size"))
        assert labels <= {
            *("rpc_service", "method", "code", "service", "result", "outcome", "rule", "direction", "pool", "state"),
            *("type", "reason", "resource", "status"),
        }


def test_every_end_reason_is_documented() -> None:
    known = {name.removeprefix("END_REASON_") for name in session_pb2.EndReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert {row[0] for row in rows("Why a session or a VM ended")} == known


def calls() -> Iterator[tuple[str, list[ast.expr], Path]]:
    """Every call in the services: name of what is called, its arguments."""
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                yield (node.func.id if isinstance(node.func, ast.Name) else node.func.attr), node.args, path


def literal(argument: ast.expr) -> str:
    """A string constant; "" for anything else."""
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


def test_every_reason_of_an_error_is_documented_with_its_code() -> None:
    raised = {(literal(args[0]), CLASSES[name]) for name, args, _ in calls() if name in CLASSES and args}
    raised = {(reason, code) for reason, code in raised if reason}
    raised |= {(reason, code.name) for code, reasons in ALLOWED.items() for reason in reasons}
    documented = {(reason, row[1]) for row in rows("Errors") for reason in words(row[0])}
    assert documented == raised


def test_every_condition_is_documented() -> None:
    documented = rows("Conditions")
    types = {name.removeprefix("POOL_CONDITION_TYPE_") for name in pool_pb2.PoolConditionType.keys()}  # noqa: SIM118
    assert {row[0] for row in documented} == types - {"UNSPECIFIED"}
    reasons = {literal(args[2]) for name, args, _ in calls() if name == "set_condition"} - {""}
    assert reasons and all(any(reason in row[1] for row in documented) for reason in reasons)


def test_every_rule_of_the_guest_protocol_is_a_literal() -> None:
    """It becomes a label: nothing that a guest has said may be in it."""
    rules = [args for name, args, _ in calls() if name == "GuestProtocolError"]
    assert rules and all(len(args) == 1 and literal(args[0]) for args in rules)


def test_dashboard_and_alerts_use_metrics_that_exist() -> None:
    process = {metric.name for metric in metrics.REGISTRY.collect() if metric.name.startswith("process_")}
    known = set(declared()) | process | {"process_cpu_seconds_total"}
    known |= {f"{name}_{end}" for name, (kind, _) in declared().items() if kind == "histogram" for end in ENDS}
    for name in ("dashboard.json", "alerts.yaml"):
        used = set(NAME.findall((GRAFANA / name).read_text()))
        assert used and used <= known, used - known


ENDS = ("bucket", "sum", "count")


def test_labels_of_the_dashboard_exist_on_their_metrics() -> None:
    labels = {name: having | {"service", "le", "instance"} for name, (_, having) in declared().items()}
    for text in (panel_expressions(), [(GRAFANA / "alerts.yaml").read_text()]):
        for name, inside in (pair for one in text for pair in re.findall(r"(sandpool_[a-z_]+)\{([^}]*)\}", one)):
            base = next(known for known in (name, re.sub(r"_(bucket|sum|count)$", "", name)) if known in labels)
            assert set(re.findall(r"([a-z_]+)[=!]", inside)) <= labels[base], (name, inside)


def panel_expressions() -> list[str]:
    """Of the whole dashboard, which is small."""
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    assert 0 < len(panels) <= 12
    return [target["expr"] for panel in panels for target in panel["targets"]]
