"""The commands of development: `nox -s lint` runs one of them, `nox` all.

They run in the environment that is active (`pip install -e ".[test,docs,dev]"`); `.ci/run` makes
new ones. What stands behind `--` is handed on: `nox -s test -- tests/pairs -k adam`.
"""

import nox

nox.options.default_venv_backend = "none"
nox.options.stop_on_first_error = True
nox.options.sessions = ["all"]

SESSIONS = ("lint", "types", "docs", "test")


@nox.session
def lint(session: nox.Session) -> None:
    """The rules and the format of ruff."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The types of the library, by mypy; those of the pages and examples, by mypy and pyright."""
    session.run("mypy")
    session.run("python", "-m", "pytest", "-n", "0", "-m", "slow", "tests/docs/test_types.py")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, into docs/_build/html or another folder; a warning is an error."""
    folder = session.posargs or ["docs/_build/html"]
    # -E: what an earlier build has read would be left out, and with it its warnings.
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-E", "-b", "html", "docs", *folder)


@nox.session
def test(session: nox.Session) -> None:
    """The fast tests."""
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(name="all")
def everything(session: nox.Session) -> None:
    """All of them, the quick ones first."""
    for name in SESSIONS:
        session.notify(name, posargs=[])
