"""What no file and no service is told."""

import pytest

from bridge.metrics.trackers.secrets import is_secret, without_secrets

HOOK = "https://hooks.slack.com/services/"


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hf_token", "X-Api-Token", "accessToken", "webhook", "webhook_url", "bearer", "key", "api_key", "private_key"),
        *("pat", "auth", "signing", "Authorization", "WANDB_API_KEY", "client_secret", "passphrase"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)
    assert without_secrets({name: "x"}) == {name: "***"}


@pytest.mark.parametrize(
    "name",
    [
        *("pad_token", "eos_token", "tokens", "tokenizer", "total_tokens", "moe_token_dispatcher_type", "num_key_value_heads"),
        *("path", "author", "text_key", "keys", "monkey", "signature_columns", "max_tokens"),
    ],
)
def test_names_of_no_secrets(name):
    assert without_secrets({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("ghp_SECRETPAT", "***"),
        ("see github_pat_11AAAA_bb for it", "see *** for it"),
        ("hf_" + "a" * 34, "***"),
        ("hf_output_root", "hf_output_root"),
        ("sk-ant-0123456789abcdef0123", "***"),
        ("sk-learn", "sk-learn"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("Bearer SECRETHDR", "Bearer ***"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic ***"),
        ("Basic training", "Basic training"),
        (HOOK + "T00/B00/SECRET", HOOK + "***"),
        ("https://u:pw@host/x?access_token=a&page=2&sig=b#c", "https://***@host/x?access_token=***&page=2&sig=***#c"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.abc", "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "***"),
    ],
)
def test_values_that_look_secret(value, shown):
    assert without_secrets({"text": [value]}) == {"text": [shown]}


def test_where_a_secret_comes_from_is_no_secret():
    assert without_secrets({"token": "${oc.env:HF_TOKEN}"}) == {"token": "${oc.env:HF_TOKEN}"}
    assert without_secrets({"token": "${oc.env:HF_TOKEN,SECRET}"}) == {"token": "***"}


def test_secrets_of_the_environment_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "planted-value")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    assert without_secrets(["a planted-value b", "1", 1]) == ["a *** b", "1", 1]


def test_numbers_and_switches_stay():
    assert without_secrets({"auth": True, "key": 3, "token": None}) == {"auth": True, "key": 3, "token": None}
    assert without_secrets({"auth": ["user", "pw"], "password": 3}) == {"auth": "***", "password": "***"}


def test_secrets_stay_here():
    options = {"logger": {"wandb_api_key": "k", "dir": "runs"}, "list": [{"password": "p"}], "tokenizer": "byte"}
    assert without_secrets(options) == {
        "logger": {"wandb_api_key": "***", "dir": "runs"},
        "list": [{"password": "***"}],
        "tokenizer": "byte",
    }


def test_logins_in_addresses_stay_here():
    assert without_secrets(["sqlite:///runs/a@b.db", "https://me:pass@host/x", "a@b"]) == [
        "sqlite:///runs/a@b.db",
        "https://***@host/x",
        "a@b",
    ]
