"""Settings: every source, every refusal, and nothing secret in any of it."""

from pathlib import Path

import pytest

from app.settings import Settings, SettingsError, load, secrets, variable
from app.settings.listing import effective, mask, table

ROOT = Path(__file__).parent.parent
KEY = "sk-proj-0123456789abcd"


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own settings; files are those that a test writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secrets, "SECRETS_FOLDER", tmp_path / "secrets")
    for field in Settings.model_fields:
        monkeypatch.delenv(variable(field), raising=False)


def refusal(**overrides: object) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(**overrides)
    return caught.value.messages


def test_the_stronger_source_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/relay_port").write_text("1")
    assert load().port == 1
    (tmp_path / "relay.toml").write_text("port = 2\nheartbeat_seconds = 7")
    assert load().port == 2
    (tmp_path / ".env").write_text("RELAY_PORT=3\nUNRELATED=1")
    assert load().port == 3
    monkeypatch.setenv("RELAY_PORT", "4")
    assert load().port == 4
    assert load(port=5).port == 5
    assert load(port=None).heartbeat_seconds == 7


def test_an_override_beats_the_sdks_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example/v1")
    chosen = load(openai_api_key="demo", openai_base_url="http://127.0.0.1:1/v1")
    assert chosen.openai_api_key is not None
    assert (chosen.openai_api_key.get_secret_value(), chosen.openai_base_url) == ("demo", "http://127.0.0.1:1/v1")


def test_a_misspelt_name_is_told_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RELAY_HEARTBEET_SECONDS", "1")
    (tmp_path / ".env").write_text("RELAY_PROT=1")
    (tmp_path / "relay.toml").write_text("sse_id = 'never'\n[zzz]\n")
    assert refusal() == (
        "RELAY_HEARTBEET_SECONDS is no setting; did you mean RELAY_HEARTBEAT_SECONDS?",
        "RELAY_PROT in .env is no setting; did you mean RELAY_PORT?",
        "sse_id in relay.toml is no setting; did you mean sse_ids?",
        "zzz in relay.toml is no setting; README.md lists them all",
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RELAY_PORT", "abc", "RELAY_PORT='abc': must be a valid integer"),
        ("RELAY_PORT", "65536", "RELAY_PORT='65536': must be less than or equal to 65535"),
        ("RELAY_SSE_IDS", "yes", "RELAY_SSE_IDS='yes': must be 'auto', 'always' or 'never'"),
        ("RELAY_IDLE", "1", "RELAY_IDLE is no setting; README.md lists them all"),
        (
            "RELAY_CORS_ORIGINS",
            "https://a.example/",
            "RELAY_CORS_ORIGINS='https://a.example/': 'https://a.example/' is not an exact origin such as "
            "https://app.example.com",
        ),
        ("OPENAI_BASE_URL", KEY, "OPENAI_BASE_URL: must be an http:// or https:// URL"),
    ],
)
def test_a_bad_value_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    assert refusal() == (message,)


def test_everything_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_PROT", "1")
    monkeypatch.setenv("RELAY_ATTEMPTS", "0")
    assert len(refusal(heartbeat_seconds=-1)) == 3


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert refusal(timeout_idle_seconds=400) == (
        "RELAY_TIMEOUT_IDLE_SECONDS=400.0 is more than RELAY_MAX_TIMEOUT_IDLE_SECONDS=300.0; change one of them",
    )
    assert len(refusal(log_stream_bytes=2048)) == 1
    assert "RELAY_HOLD_STATUS_SECONDS=3.0" in refusal(max_connection_seconds=2)[0]
    assert load(max_connection_seconds=0).max_connection_seconds == 0


def test_a_broken_file_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_text("port = ")
    assert refusal()[0].startswith("relay.toml or .env cannot be read")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").symlink_to("/proc/self/mem")  # a file, and its beginning not to be read
    assert refusal() == ("relay.toml or .env cannot be read: Input/output error",)


@pytest.mark.parametrize(
    ("secret", "shown"), [(KEY, "sk-…abcd"), ("0123456789ab", "…89ab"), ("0123456789a", "…"), ("", "…")]
)
def test_a_secret_shows_four_characters_at_most(secret: str, shown: str) -> None:
    assert mask(secret) == shown


def test_the_listing_shows_sources_and_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / ".env").write_text("OPENAI_BASE_URL=https://user:pass@gateway.example/v1?key=secret")
    (tmp_path / "relay.toml").write_text("port = 1")
    rows = {row.variable: (row.value, row.source) for row in effective(load())}
    assert rows["OPENAI_API_KEY"] == ("sk-…abcd", "environment")
    assert rows["OPENAI_BASE_URL"] == ("https://…@gateway.example/v1?…", ".env")
    assert rows["RELAY_PORT"] == (1, "relay.toml")
    assert rows["RELAY_HOST"] == ("127.0.0.1", "default")


def test_every_setting_has_a_meaning() -> None:
    assert all(row.meaning for row in effective(load()))


def test_the_table_reads_like_prose() -> None:
    assert "| `RELAY_MAX_BODY_BYTES` | 10 MiB | a request's body |" in table()
    assert "| `RELAY_HEARTBEAT_SECONDS` | 15 s |" in table()


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="there is no README.md yet")
def test_the_readme_has_the_table() -> None:
    """To mend it: python -c 'from app.settings.listing import table; print(table())'."""
    _, begun, rest = (ROOT / "README.md").read_text().partition("<!-- settings -->\n")
    block, ended, _ = rest.partition("<!-- /settings -->")
    assert begun, "README.md lacks <!-- settings -->"
    assert ended, "README.md lacks <!-- /settings -->"
    assert block.strip() == table()


def test_the_example_names_settings_alone() -> None:
    lines = [line.lstrip("#") for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line.split(" ")[0]]
    assert {line.partition("=")[0] for line in lines} <= {variable(field) for field in Settings.model_fields}
    assert lines


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("RELAY_REDIS_URL", "redis://:hunter2/secret@host", "names no server"),
        ("RELAY_REDIS_URL", "redis://:secret@/0", "names no server"),
        ("RELAY_REDIS_URL", "redis://:secret@h/0?foo=bar", "has an option that is not known here"),
        ("HTTPS_PROXY", "socks5://user:secret@proxy", "must be an http:// or https:// URL"),
    ],
)
def test_a_url_with_a_password_is_refused_unquoted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, rule: str
) -> None:
    monkeypatch.setenv(name, value)
    (message,) = refusal()
    assert message.startswith(f"{name}: {rule}")
    assert not [word for word in ("secret", "hunter2") if word in message]


@pytest.mark.parametrize("url", ["redis+sentinel://:secret@a/b", "http://:secret@a", "localhost:6379"])
def test_only_one_redis_server_can_be_named_and_its_password_is_told_to_nobody(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_REDIS_URL", url)
    with pytest.raises(SettingsError) as refused:
        load()
    assert "RELAY_REDIS_URL: must be a redis://, rediss:// or unix:// URL" in str(refused.value)
    assert "secret" not in str(refused.value)
