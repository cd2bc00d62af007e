"""Use the service's page in a real browser."""

import base64
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import torch
import uvicorn
from PIL import Image

from ast_model.config import ASTConfig
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.service.limits import Limits
from ast_model.service.service import PendingWindow, Result, ServedModel, Service, run_batch
from jobs.service.web import Figures, make_app
from pipeline.audio.decode import encode_flac
from tests.browser import FLAGS, wait_for

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: make browser installs it")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no chromium: apt-get install chromium chromium-driver",
    ),
]
TOKEN = "a token of some length"
LABELS = ("Speech", "Dog, barking", "Rain")
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


async def run(work: PendingWindow) -> Result:
    return run_batch([work])[0]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of the application on loopback, with a token."""
    torch.manual_seed(0)
    shape = ASTConfig(3, num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)
    tagger = Tagger(AST(shape), ModelMetadata(LABELS, -5, 4), "cpu")
    limits = Limits()
    gate: Any = make_app(Service(ServedModel(tagger, "a small model"), limits, run), limits, TOKEN, Figures())
    with socket.create_server(("127.0.0.1", 0)) as bound:
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(gate, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        wait_for(lambda: requests.get(f"{address}/healthz", timeout=5).ok)
        yield address
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rising tones with noise in between."""
    times = np.arange(6 * 16_000) / 16_000
    tones = 0.3 * np.sin(2 * np.pi * (300 + 250 * times) * times) * (np.sin(3 * times) > 0)
    waveform = tones + np.random.default_rng(0).normal(0, 0.02, len(times))
    file = tmp_path_factory.mktemp("sounds") / "tones.flac"
    file.write_bytes(encode_flac(waveform.astype(np.float32)))
    return file


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in [*FLAGS, *MICROPHONE, "--autoplay-policy=no-user-gesture-required", f"--user-data-dir={tmp_path}/p"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def enter(driver: Any, address: str) -> None:
    driver.get(address)
    driver.execute_script("sessionStorage.setItem('token', arguments[0])", TOKEN)


def picture(driver: Any, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        file = Path(folder) / f"{name}.png"
        driver.save_screenshot(str(file))
        with Image.open(file) as image:
            image.convert("RGB").quantize(96).save(file, optimize=True)


def test_sound_is_tagged_played_and_downloaded(driver: Any, address: str, sound: Path, tmp_path: Path) -> None:
    enter(driver, address)
    find(driver, "#file").send_keys(str(sound))
    wait_for(lambda: find(driver, "#result").is_displayed())
    assert find(driver, "#model").text == "a small model" and "6.0 s" in find(driver, "#status").text
    assert {item.text.split("\n")[0] for item in driver.find_elements("css selector", "#tags li")} == set(LABELS)
    wait_for(lambda: find(driver, "#spectrogram").get_property("naturalWidth") > 100)
    picture(driver, "service")

    assert [swatch.text for swatch in driver.find_elements("css selector", ".swatch")] == [
        "0",
        "0.01",
        "0.1",
        "0.5",
        "1",
    ]
    ground, empty, faint, low = driver.execute_script(COLOURS, [0, 0.005, 0.08])
    assert empty == ground == [255, 255, 255]
    assert sum(faint) - sum(low) > 60
    # By keyboard: a segment has the focus and is chosen by Enter.
    segment = driver.find_elements("css selector", ".segment")[2]
    start_s, end_s = (float(segment.accessible_name.split(", ")[-2].split()[at]) for at in (0, 2))
    assert segment.accessible_name.startswith("Play ") and start_s > 0
    driver.execute_script("arguments[0].focus()", segment)
    segment.send_keys("\n")
    player = find(driver, "#player")
    wait_for(lambda: not player.get_property("paused") or player.get_property("currentTime") > start_s + 0.1)
    wait_for(lambda: player.get_property("paused"))
    assert end_s - 0.1 <= player.get_property("currentTime") < end_s + 1

    endings = {
        "csv": "csv",
        "jsonl": "jsonl",
        "parquet": "parquet",
        "raven": "selections.txt",
        "audacity": "labels.txt",
    }
    for format, ending in endings.items():
        find(driver, f"[data-format={format}]").click()
        wait_for((tmp_path / f"tones.flac.{ending}").exists)
    table = pd.read_csv(tmp_path / "tones.flac.csv")
    assert set(table["label"]) == set(LABELS) and table["end_s"].max() == pytest.approx(5.995)
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


COLOURS = """
// Colours in sRGB from 0 to 255, as a canvas draws them.
const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const drawn = style => {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.backgroundColor = style;
  pixel.fillStyle = getComputedStyle(probe).backgroundColor;
  pixel.fillRect(0, 0, 1, 1);
  probe.remove();
  return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
return [drawn("var(--card)"), ...arguments[0].map(score => drawn(shade(score)))];
"""
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "dropped.flac"));
const area = document.getElementById("drop");
for (const kind of ["dragenter", "dragover", "drop"])
  area.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
return area.classList.contains("over");
"""


def test_dropped_sound_is_tagged(driver: Any, address: str, sound: Path) -> None:
    enter(driver, address)
    assert driver.execute_script(DROP, base64.b64encode(sound.read_bytes()).decode()) is False
    wait_for(lambda: find(driver, "#result").is_displayed())
    assert find(driver, "#name").text == "dropped.flac" and "6.0 s" in find(driver, "#status").text


def test_microphone_is_recorded(driver: Any, address: str) -> None:
    enter(driver, address)
    find(driver, "#record").click()
    wait_for(lambda: find(driver, "#record").text == "Stop")
    started_s = driver.execute_script("return performance.now()") / 1000
    wait_for(lambda: driver.execute_script("return performance.now()") / 1000 > started_s + 1.5)
    find(driver, "#record").click()
    wait_for(lambda: "s of sound" in find(driver, "#status").text)
    assert find(driver, "#name").text == "recording"


def test_page_explains_refusals_and_requests_a_missing_token(driver: Any, address: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.wav"
    file.write_text("no sound")
    driver.get(address)
    find(driver, "#file").send_keys(str(file))
    wait_for(lambda: find(driver, "#access").is_displayed())
    find(driver, "#token").send_keys(TOKEN + "\n")
    wait_for(lambda: "choose the sound again" in find(driver, "#status").text)
    find(driver, "#file").send_keys(str(file))
    wait_for(lambda: "can't be decoded" in find(driver, "#status").text)
    assert not find(driver, "#result").is_displayed()


def test_page_fits_a_phone_in_dark_mode(driver: Any, address: str, sound: Path) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": True}
    )
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    enter(driver, address)
    find(driver, "#file").send_keys(str(sound))
    wait_for(lambda: find(driver, "#result").is_displayed())
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
    assert find(driver, "body").value_of_css_property("background-color").startswith("rgba(21, 20, 23")
    picture(driver, "service-phone")
    controls = driver.find_elements("css selector", "button, input:not([type=password]), audio")
    assert all(control.accessible_name for control in controls if control.is_displayed())
