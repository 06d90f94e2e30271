"""Take the README's picture: `python -m tests.pages.screenshot [KIT] [OUT] [PICTURE] [X Y TO_X TO_Y]`.

Opens the canvas, lays a path, drags from (X, Y) to (TO_X, TO_Y), shares of the picture, and takes the page in mid-drag.
"""
import io
import sys

from PIL import Image

from .browser import Stage, open_browser
from .serve import serve


def shoot(kit="tiny", out="assets/canvas.png", picture=0, start=(0.4, 0.5), end=(0.65, 0.4), width=1160, height=950):
    page, lobby, url = serve(kit, 7869, folder=None)
    try:
        with open_browser() as browser:
            stage = Stage(browser, url, width, height, color_scheme="dark").state("ready")
            if picture:
                stage.page.locator("#msk-gallery .grid-container button").nth(picture).click()
                stage.page.wait_for_timeout(1500)
                stage.state("ready")
            stage.page.keyboard.press("3")
            for place in ((0.12, 0.8), (0.3, 0.66), (0.55, 0.86), (0.85, 0.72)):
                stage.click(*place)
            stage.page.keyboard.press("Enter")
            stage.page.get_by_role("button", name="Smooth").click()
            stage.page.keyboard.press("1")
            stage.drag(start, end, steps=30, let_go=False)
            shot = Image.open(io.BytesIO(stage.page.screenshot())).convert("RGB")
            stage.page.mouse.up()
            print(stage.complaints or "no complaints", stage.ask("stage.stats"))
    finally:
        lobby.close()
        page.close(verbose=False)
    shot.save(out, optimize=True)


if __name__ == "__main__":
    args = sys.argv[1:]
    numbers = [float(v) for v in args[3:7]]
    shoot(*args[:2], *map(int, args[2:3]), *([numbers[:2], numbers[2:]] if numbers else []))
