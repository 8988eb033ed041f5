"""The demo tells the truth, about people whose names tell the truth, and cleans up."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import unicodedata
from datetime import UTC, datetime, time
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sandbox import demo, oracle, picture
from tests.sandbox.database import Server
from tests.sandbox.people import NO_LOGS, Outcome, Person, newcomers, next_midnight, people

NOW = datetime(2024, 3, 10, 12, tzinfo=UTC)


# --- the people


@given(st.datetimes(datetime(2012, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_everybody_is_the_case_that_the_name_tells_at_any_moment(now: datetime) -> None:
    for person in people(now):
        if person.zone and person.outcome in (Outcome.TEXTED, Outcome.ON_TRACK, Outcome.REFUSED):
            assert oracle.due(now, person.zone.key, person.logs) == person.rule, person
        assert all(log <= now for log in person.logs), f"{person} logged in the future"


@given(st.datetimes(datetime(2012, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_somebody_is_outside_of_the_window_at_any_moment(now: datetime) -> None:
    [nora] = [person for person in newcomers(now) if person.outcome is Outcome.LATER]
    start, end = (time.fromisoformat(text) for text in demo.WINDOW.split("-"))
    for moment in (now, now + demo.LONGEST):
        assert not start <= moment.astimezone(nora.zone).time() < end


def test_all_outcomes_and_both_rules_are_among_the_people() -> None:
    everybody = [*people(NOW), *newcomers(NOW)]
    assert {person.outcome for person in everybody} == set(Outcome)
    assert len({person.rule for person in everybody if person.texted}) == 2
    assert len({person.name for person in everybody}) == len(everybody)


def test_no_number_can_be_that_of_a_real_person() -> None:
    fiction = r"\+1\d{3}55501\d\d|\+447700900\d{3}|\+3363998\d{4}|\+467017406[0-9]\d|\+61491570156"
    for person in people(NOW):
        if person.texted or person.outcome is Outcome.REFUSED:
            assert re.fullmatch(fiction, str(person.phone_number)), person


def test_the_next_midnight_is_the_first_one_of_any_zone() -> None:
    def someone(zone: str | None) -> Person:
        return Person("Ana", "+12025550100", zone, Outcome.TEXTED, NO_LOGS)

    everybody = [someone("Europe/Madrid"), someone("Asia/Kathmandu"), someone(None)]
    assert next_midnight(everybody, NOW) == datetime(2024, 3, 10, 18, 15, tzinfo=UTC)


# --- the demo


def start(**environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sandbox.demo"],
        cwd=demo.ROOT,
        env={"PATH": os.environ["PATH"]} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def told(throwaway: None) -> str:  # noqa: ARG001
    """What the demo prints, on a throw-away server."""
    with start() as process:
        assert process.stdout
        output = process.stdout.read()
    assert process.returncode == 0, output
    return output


def test_the_demo_names_everybody_and_what_became_of_them(told: str) -> None:
    for person in [*people(NOW), *newcomers(NOW)]:
        assert told.count(demo.display(person.name)) >= 1, person
    assert "✗" not in told
    assert "Everybody got exactly what they should." in told


def test_the_demo_shows_every_text_on_the_phone_of_its_owner(told: str) -> None:
    phones = told.partition("The phones")[2].partition("The same job once more")[0]
    shown = sorted(re.findall(r"╭─ (\+\d+) · \w{3} \d\d:\d\d in ", phones))
    assert shown == sorted(str(person.phone_number) for person in people(NOW) if person.texted)


def test_the_demo_shows_both_runs_and_a_refusal(told: str) -> None:
    assert told.count("Starting habit notification job") == 2
    texted = sum(person.texted for person in people(NOW))
    assert f"Notifications sent: {texted}, Failed: 1" in told
    assert "Notifications sent: 0, Failed: 0" in told
    second = told.partition("The same job once more")[2]
    assert re.search(r"Nora Night-Over-There \(ID: \d+\) gets no text, later: it is", second)
    assert re.search(r"Otto Texts-Never-Arrive \(ID: \d+\) gets no text, left alone", second)
    assert "21610" in told


def test_the_demo_fits_a_terminal_and_has_no_colours_in_a_file(told: str) -> None:
    for line in told.splitlines():
        assert sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line) <= 100, line
    assert "\033" not in told


def test_the_picture_in_the_readme_shows_what_the_demo_shows(told: str) -> None:
    drawn = re.findall("<text[^>]*>([^<]*)</text>", picture.FILE.read_text())
    assert picture.words(map(unescape, drawn)) == picture.words(picture.excerpt(told)), "make demo-picture"


def test_the_demo_says_so_when_the_program_does_not_do_its_job(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idle = tmp_path / "idle.py"
    idle.write_text("print('2024-01-15 09:00:01 - __main__ - INFO - Job completed. Notifications sent: 12, Failed: 0')")
    monkeypatch.setattr(demo, "PROGRAM", str(idle))
    monkeypatch.setenv("TEST_MYSQL_URL", f"mysql://{server.user}:{server.password}@{server.host}:{server.port}/")
    assert demo.tell() == 1
    output = capsys.readouterr().out
    assert "✗ Ana No-Logs (ID 1): expected a text (No logs in the past 2 days), got nothing: on track" in output
    assert "Somebody did not get what they should." in output


@pytest.mark.usefixtures("throwaway")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_cleans_up(end: signal.Signals) -> None:
    with start() as process:
        assert process.stdout
        port = None
        for line in process.stdout:
            if found := re.search(r"answers on 127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
            if "Starting habit notification job" in line:
                process.send_signal(end)
                break
        output = process.stdout.read()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port or 0)).close()


def test_a_machine_without_any_server_gets_one_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEST_MYSQL_URL", "mysql://root@127.0.0.1:1/")
    assert demo.main() == 1
    assert "TEST_MYSQL_URL names a server that cannot be used" in capsys.readouterr().err
