"""The report in a headless Chromium: time to open with 2,000 prompts, requests, screenshots and PDF.

Run as ``python tests/benchmarks/report_in_browser.py FOLDER [REPORT.html ...]``; without reports, one with
2,000 prompts is made in both languages. Prints one line per page; exit status 1 if one takes 2 seconds or
more, asks for anything outside itself, or is wider than its window.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

WIDTHS, MOST_SECONDS, PROMPTS = (1280, 390), 2.0, 2000
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_BROWSERS_OWN = re.compile(r"https?://[\w.-]+\.(?:google|googleapis|gvt1)\.com[/:]")
VERDICT = {
    "outcome": "FAIL",
    "reasons": [
        {"check": "harm_upper95", "outcome": "FAIL", "figure": 0.1128, "bound": 0.05},
        {"check": "max_harm_by_any_judge", "outcome": "INDETERMINATE", "figure": 0.1462, "bound": 0.1},
        *({"check": f"check {number}", "outcome": "PASS"} for number in range(20)),
    ],
}
MEASURE = """
const page = document.querySelector('iframe').contentDocument;
document.title = JSON.stringify({ms: performance.now(), scroll: page.documentElement.scrollWidth,
  height: page.documentElement.scrollHeight});
"""


def make_reports(folder: Path) -> list[Path]:
    """A report with 2,000 prompts for every arm, in English and in Japanese."""
    from dataclasses import replace

    from secvec.components.evaluate_harm.verdict_banner import show_verdict

    path = Path(__file__).parents[1] / "components" / "evaluate_harm" / "test_report.py"
    spec = importlib.util.spec_from_file_location("test_report", path)
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outcomes = [
        replace(o, id=f"{o.id}-{copy}", prompt=f"{o.prompt} ({copy})")
        for copy in range(PROMPTS // 40)
        for o in module.make_outcomes()
    ]
    pages = []
    for language in ("en", "ja"):
        pages.append(folder / f"report-{language}.html")
        page = show_verdict(module.render(outcomes, language=language), VERDICT)
        pages[-1].write_text(page, encoding="utf-8")
    return pages


def run(folder: Path, *arguments: str) -> str:
    """Run the browser once."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def open_page(page: Path, *, width: int, folder: Path) -> dict[str, Any]:
    """Open a page in a frame of a given width and measure it; then take its picture."""
    wrapper, log = folder / "wrapper.html", folder / "net.json"
    text = html.escape(page.read_text(encoding="utf-8"))
    frame = f'<iframe style="border:0" width="{width}" height="HEIGHT" srcdoc="{text}"></iframe>'
    head = "<!doctype html><meta charset=utf-8><style>body{margin:0}</style>"
    wrapper.write_text(
        f"{head}{frame.replace('HEIGHT', '900')}<script>onload = () => {{ {MEASURE} }}</script>"
    )
    dumped = run(folder, f"--log-net-log={log}", "--dump-dom", wrapper.as_uri())
    title = re.search(r"<title>(\{.*?\})</title>", dumped)
    assert title, dumped[-500:]
    found: dict[str, Any] = json.loads(html.unescape(title.group(1)))
    asked = set(re.findall(r'"url":"((?!file:|data:|about:|chrome)[^"]*)"', log.read_text(errors="replace")))
    # Chromium's own, whatever page it shows
    asked = {url for url in asked if not _BROWSERS_OWN.match(url)}
    wrapper.write_text(head + frame.replace("HEIGHT", str(found["height"])))
    size = f"--window-size={width},{min(found['height'], 12000)}"
    run(folder, f"--screenshot={folder / f'{page.stem}-{width}.png'}", size, wrapper.as_uri())
    return {**found, "requests": sorted(asked)}


def main(folder: Path, pages: list[Path]) -> bool:
    """Look at every page at every width, and print it; whether all is well."""
    folder.mkdir(parents=True, exist_ok=True)
    good = True
    for page in pages or make_reports(folder):
        for width in WIDTHS:
            found = open_page(page, width=width, folder=folder)
            fits = found["scroll"] <= width and found["ms"] < 1000 * MOST_SECONDS
            good = good and fits and not found["requests"]
            print(json.dumps({"page": page.name, "bytes": page.stat().st_size, "width": width, **found}))
        run(folder, f"--print-to-pdf={folder / f'{page.stem}.pdf'}", "--no-pdf-header-footer", page.as_uri())
    return good


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
