"""The report's page in a real browser."""

import shutil
import subprocess
from pathlib import Path

import pytest
from test_results import results

from fl_lightning.experiments.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")

PROBE = """
<iframe id="page" style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<pre id="out"></pre>
<script>
addEventListener("load", () => {{
  const inside = document.getElementById("page").contentDocument;
  const root = inside.documentElement;
  document.getElementById("out").textContent =
    `rows ${{inside.querySelectorAll("tbody tr").length}} pictures ${{inside.querySelectorAll("figure svg").length}} ` +
    `over ${{root.scrollWidth - root.clientWidth}} font ${{getComputedStyle(inside.body).fontSize}}`;
}});
</script>
"""


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    quiet = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    )
    command = [BROWSER, *quiet, "--enable-logging=stderr", f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [360, 1200])
def test_it_opens_without_an_error_and_fits_the_screen(tmp_path, width):
    write_report(results(tmp_path), tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width, page=text.replace("&", "&amp;").replace('"', "&quot;")))
    shown = browse(probe, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=2000")
    assert '<pre id="out">rows 5 pictures 9 over 0 font 16px</pre>' in shown.stdout, shown.stdout[-300:]
    alone = browse(tmp_path / "out" / "report.html", tmp_path / "profile", "--dump-dom")
    assert "<h1>Some &amp; &lt;all&gt;</h1>" in alone.stdout
    for log in (shown.stderr, alone.stderr):
        assert not [line for line in log.splitlines() if "CONSOLE" in line]
