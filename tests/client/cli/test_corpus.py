from pathlib import Path

from ringpost.client.cli import corpus


def test_one_channel_for_each_package_or_module() -> None:
    assert corpus.channel_of(Path("asyncio/base_events.py")) == "stdlib.asyncio"
    assert corpus.channel_of(Path("abc.py")) == "stdlib.abc"
    assert corpus.channel_of(Path("config-3.11-x86/conf.py")) == "stdlib.config-3_11-x86"


def test_a_library_is_read_without_installed_packages_and_on_wish_without_its_tests(tmp_path: Path) -> None:
    for name in ("abc.py", "json/tool.py", "test/test_abc.py", "site-packages/x/y.py", "json/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("pass\n")
    assert [s.path for s in corpus.read(tmp_path, with_tests=True)] == ["abc.py", "json/tool.py", "test/test_abc.py"]
    assert [s.path for s in corpus.read(tmp_path, with_tests=False)] == ["abc.py", "json/tool.py"]


def test_the_machines_own_library_has_tens_of_thousands_of_lines_in_many_channels() -> None:
    sources = list(corpus.read(corpus.library(), with_tests=False))
    assert len({source.channel for source in sources}) > 100
    assert sum(source.content.count(b"\n") for source in sources) > 50_000
