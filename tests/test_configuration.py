"""docs/configuration.md: its example is read by the relay itself, and its tables name what there is."""

import re
from pathlib import Path

import pytest

from app.settings import Settings, SettingsError, load, secrets, variable
from app.settings.listing import effective, tables

DOCUMENT = (Path(__file__).parents[1] / "docs/configuration.md").read_text()
EXAMPLE = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[0]
NAMED = {"OPENAI_API_KEY": "sk-one", "AZURE_KEY": "azure-two", "WEBHOOK_SECRET": "whsec-three"}


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secrets, "SECRETS_FOLDER", tmp_path / "secrets")
    for field in Settings.model_fields:
        monkeypatch.delenv(variable(field), raising=False)


def written(text: str) -> Settings:
    Path("relay.toml").write_text(text)
    return load()


def refusal(text: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        written(text)
    return caught.value.messages


def test_the_example_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NAMED.items():
        monkeypatch.setenv(name, value)
    settings = written(EXAMPLE)
    assert [*settings.upstreams] == ["openai", "azure", "vllm"]
    assert settings.upstreams["vllm"].body == {"top_k": 40}
    assert settings.profiles["support"].parameters.temperature == 0.2
    key = settings.upstreams["azure"].api_key("azure")
    assert key is not None
    assert key.get_secret_value() == "azure-two"


def test_the_tables_name_what_there_is() -> None:
    """To mend it: python -c 'from app.settings.listing import tables; print(tables())'."""
    assert DOCUMENT.partition("<!-- tables -->\n")[2].partition("<!-- /tables -->")[0].strip() == tables()


def test_a_secret_that_is_not_there_stops_the_start() -> None:
    assert refusal(EXAMPLE) == (
        "upstreams.openai.api_key_env: there is no variable OPENAI_API_KEY",
        "upstreams.azure.api_key_env: there is no variable AZURE_KEY",
        "webhook.secret_env: there is no variable WEBHOOK_SECRET",
    )


def test_a_secret_may_stand_in_env_files_and_mounted_ones(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/azure_key").write_text("mounted\n")
    (tmp_path / ".env").write_text("OPENAI_API_KEY=from-env-file\nWEBHOOK_SECRET=x")
    settings = written(EXAMPLE)
    keys = [settings.upstreams[name].api_key(name) for name in ("openai", "azure")]
    assert [key.get_secret_value() for key in keys if key] == ["from-env-file", "mounted"]


UPSTREAM = '[upstreams.a]\nbase_url = "http://127.0.0.1/v1"\n'
HASH = f'sha256 = "{"0" * 64}"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{UPSTREAM}modells = []", "upstreams.a.modells is no setting of its table; did you mean `models`?"),
        ('[upstreams.a]\nbase_url = "ftp://x"', "upstreams.a.base_url: must be an http:// or https:// URL"),
        ('[upstreams."a b"]\nbase_url = "http://x"', "upstreams.a b: must have the form"),
        (f'{UPSTREAM}api_key_env = "sk-secret"', "upstreams.a.api_key_env: name the variable that holds the secret"),
        (f'{UPSTREAM}api_key = "sk-secret"', "upstreams.a.api_key is no setting of its table; did you mean"),
        (f"{UPSTREAM}body = {{ stream = true }}", "upstreams.a.body: `stream` cannot be set here"),
        (f'{UPSTREAM}headers = {{ "x" = "a\\nb" }}', "upstreams.a.headers: 'x' is no header that can be sent"),
        (f'{UPSTREAM}client_key_file = "k"', "upstreams.a: `client_key_file` needs `client_certificate_file`"),
        (f"{UPSTREAM}timeouts = {{ total = 3 }}", "upstreams.a.timeouts.total is no setting of its table"),
        ("[profiles.a]\nparameters = { temprature = 1 }", "profiles.a.parameters.temprature is no setting"),
        ('[keys.a]\nsha256 = "abc"', "keys.a.sha256.0: must have the form"),
        (f'[keys.a]\n{HASH}profiles = ["b"]', "keys.a.profiles: there is no profile `b`"),
        (
            f'redis_url = "redis://x"\n[keys.a]\n{HASH}mint = true',
            "RELAY_TOKEN_SECRET is needed: with RELAY_REDIS_URL a token of one process is shown to another",
        ),
        ('[issuers.a]\nissuer = "x"\naudience = "y"', "issuers.a: name either `jwks_url` or `jwks_file`"),
        (
            '[issuers.a]\nissuer = "x"\naudience = "y"\njwks_file = "f"\nalgorithms = ["HS256", "RS256"]',
            "issuers.a: `algorithms` are of shared secrets or of key pairs, not of both",
        ),
        (
            '[issuers.a]\nissuer = "x"\naudience = "y"\njwks_file = "f"\nalgorithms = ["none"]',
            "issuers.a.algorithms.0:",
        ),
        ('[webhook]\nurl = "http://x"', "webhook: name either `secret_env` or `secret_file`: a call is always signed"),
        ('[webhook]\nurl = "http://x"\nsecret_file = "missing"', "webhook.secret_env: missing cannot be read"),
        ('default_model = "b"\n' + UPSTREAM + 'models = ["a"]', "RELAY_DEFAULT_MODEL: no upstream serves `b`"),
        (f'{UPSTREAM}models = ["a"]\n[profiles.p]\nmodel = "b"', "profiles.p.model: no upstream serves `b`"),
        (f'{UPSTREAM}models = ["a"]\n[anonymous]\nmodels = ["b"]', "anonymous.models: no upstream serves `b`"),
        (f'{UPSTREAM}api_key_env = "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3"', "upstreams.a.api_key_env: name the"),
        ("[upstreem.a]", "upstreem in relay.toml is no setting; did you mean upstreams?"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_by_its_place(text: str, message: str) -> None:
    (told,) = refusal(text)
    assert told.startswith(message)
    assert "sk-secret" not in told


def test_a_variable_that_a_table_names_may_be_called_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_VLLM_KEY", "x")
    assert written(f'{UPSTREAM}api_key_env = "RELAY_VLLM_KEY"').upstreams["a"].api_key("a")


def test_the_listing_shows_tables_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NAMED.items():
        monkeypatch.setenv(name, value)
    rows = {row.variable: row.value for row in effective(written(EXAMPLE))}
    assert rows["upstreams.openai.api_key_env"] == "OPENAI_API_KEY"
    assert rows["upstreams.openai.timeouts.first_token"] == 20
    assert rows["upstreams.vllm.headers"] == ("X-Team",)
    assert not [value for value in NAMED.values() if value in repr(rows)]
