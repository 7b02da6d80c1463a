"""How long a run goes on after it was asked to stop, wherever the request comes.

    python -m benchmarks.stop [--requests 5] [--name cpu]

Each request goes to a demo run of its own in one session: in each phase of a run, after a random part of a second, and
while steps are trained. Told is the time from the request to the run's last event, with everything that was trained
saved by then. Writes benchmarks/results/stop_NAME.json.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.shapes import SAMPLE_DATA
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Phase, Started, Step
from tuitune.session.client import Session
from tuitune.session.run_requests import Stop, Train

RESULTS = Path(__file__).parent / "results"
PLACES = ("data", "model", "before", "training", "step 3", "evaluation")
_AT_MOST_S = 0.5
"""A request comes so long, at most, after the phase that it is for has begun."""


def is_at(place: str, event: Event) -> bool:
    """Whether the event begins what a request is for; the run measures itself after its fourth step."""
    if place.startswith("step"):
        return isinstance(event, Step) and event.step == int(place.split()[1])
    if place == "evaluation":
        return isinstance(event, Step) and event.step == 4
    return isinstance(event, Phase) and event.name == place


async def seconds_to_stop(session: Session, place: str, runs: Path, name: str, delay_s: float) -> dict[str, Any]:
    """Seconds from the request to the end of the run, and how it ended; empty where it was over before."""
    recipe = Recipe.load(SAMPLE_DATA / "demo.yaml", ["max_steps=60", "eval_steps=4"])
    reached, run = asyncio.Event(), ""

    def note(event: Event) -> None:
        nonlocal run
        if isinstance(event, Started):
            run = event.run
        if run == name and is_at(place, event):
            reached.set()

    await session.follow(note)
    job = asyncio.create_task(session.call(Train(recipe.model_dump(mode="json"), str(runs), name)))
    job.add_done_callback(lambda job: reached.set())
    await reached.wait()
    if job.done():
        return {}
    await asyncio.sleep(delay_s)
    asked = time.monotonic()
    await session.call(Stop())
    answer = await job
    return {"seconds": time.monotonic() - asked, "status": answer["status"]}


async def measured(requests: int) -> dict[str, Any]:
    places: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for place in PLACES:
            answers = []
            session = await Session.start()
            for number in range(requests):
                name = f"{place.replace(' ', '-')}-{number}"
                answers.append(await seconds_to_stop(session, place, Path(folder), name, random.uniform(0, _AT_MOST_S)))
            await session.close()
            seconds = [answer["seconds"] for answer in answers if answer]
            places[place] = {
                "requests": len(seconds),
                "median_s": round(statistics.median(seconds), 2) if seconds else None,
                "longest_s": round(max(seconds), 2) if seconds else None,
                "ended": sorted({answer["status"] for answer in answers if answer}),
            }
            print(place, places[place], flush=True)
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--name", default="cpu")
    arguments = parser.parse_args()
    result = {
        "what": "seconds from a request to stop to the end of the demo run, by where it came",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "places": asyncio.run(measured(arguments.requests)),
        "load_average": round(os.getloadavg()[1], 1),
    }
    (RESULTS / f"stop_{arguments.name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
