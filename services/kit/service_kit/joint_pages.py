"""The pages of several services of one host as one: `python -m service_kit.joint_pages --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service_kit import config, log, metrics, pages, server

logger = structlog.get_logger("joint_pages")


@dataclass(frozen=True)
class Config:
    """listen: one address, see pages. sources: NAME=ADDRESS of the pages of each service."""

    listen: tuple[str, ...]
    sources: tuple[str, ...]


class Merged(Collector):
    """Families of several pages, each once: every sample says already whose it is."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._families: dict[str, Metric] = {}
        for text in texts:
            for family in text_string_to_metric_families(text):
                known = self._families.setdefault(family.name, family)
                if known is not family:
                    known.samples += family.samples

    def collect(self) -> Iterable[Metric]:
        """All."""
        return self._families.values()


async def _get(source: str, path: str) -> pages.Answer | None:
    name, _, address = source.partition("=")
    try:
        return await pages.fetch(address, path)
    except (OSError, TimeoutError) as error:
        logger.warning("no_answer", source=name, error=str(error))
        return None


async def _all(sources: Iterable[str], path: str) -> list[pages.Answer | None]:
    asking: list[Awaitable[pages.Answer | None]] = [_get(source, path) for source in sources]
    return list(await asyncio.gather(*asking))


async def scrape(sources: tuple[str, ...]) -> pages.Answer:
    """Metrics of those that answer, and which these are."""
    answers = await _all(sources, "/metrics")
    merged = Merged(answer.body.decode() for answer in answers if answer is not None and answer.status == 200)
    up = UP.family(
        {(name_of(source),): float(answer is not None) for source, answer in zip(sources, answers, strict=True)}
    )
    return pages.Answer(generate_latest(merged) + generate_latest(_One(up)), content_type=metrics.CONTENT_TYPE)


UP = metrics.derived("sandpool_up", "1 if a service of this host answers the joint page.", (metrics.SERVICE_LABEL,))


class _One(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """It."""
        return [self._family]


def name_of(source: str) -> str:
    """Of NAME=ADDRESS."""
    return source.partition("=")[0]


async def ready(sources: tuple[str, ...]) -> pages.Answer:
    """Ready when all are: each is a dependency here, with its own answer as detail."""
    answers = await _all(sources, "/readyz")
    needed = [
        {
            "name": name_of(source),
            "ready": answer is not None and answer.status == 200,
            "detail": _parse(answer.body) if answer is not None else "no answer",
        }
        for source, answer in zip(sources, answers, strict=True)
    ]
    return pages.readiness("sandpool", all(need["ready"] for need in needed), needed)


def _parse(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return "an answer that is no JSON"


async def live() -> pages.Answer:
    """This process answers."""
    return pages.readiness("sandpool", True, [])


async def main_async(settings: Config, stopping: asyncio.Event) -> None:
    """Serve until told to stop."""
    if len(settings.listen) != 1:
        raise config.ConfigError("setting 'listen': exactly one address")
    served: dict[str, pages.Page] = {
        "/metrics": partial(scrape, settings.sources),
        "/readyz": partial(ready, settings.sources),
        "/livez": live,
    }
    async with pages.serve_pages(settings.listen[0], served) as address:
        server.print_ready("metrics", address)
        await stopping.wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="sandpool-metrics", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="TOML file; see Config")
    arguments = parser.parse_args()
    log.configure("metrics")
    try:
        settings = config.load(Config, arguments.config)
        server.run(lambda stopping: main_async(settings, stopping))
    except (config.ConfigError, pages.PagesRefused) as error:
        sys.exit(f"sandpool-metrics: {error}")


if __name__ == "__main__":
    main()
