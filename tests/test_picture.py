import io

import numpy as np
import pytest
import torch
from PIL import Image

from msk.config import Geometry
from msk.picture import fitted, picture, read_picture

G = Geometry(32, 48)


def test_pictures_come_in_every_form(tmp_path):
    array = np.random.default_rng(0).integers(64, 192, (40, 60, 3), dtype=np.uint8)         # no filter overshoots
    Image.fromarray(array).save(tmp_path / "p.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    forms = [array, Image.fromarray(array), tmp_path / "p.png", str(tmp_path / "p.png"), tensor, tensor[None]]
    made = [picture(form, G) for form in forms]
    assert all(m.shape == (1, 3, 32, 48) for m in made)
    assert all(torch.allclose(m, made[0], atol=1.1 / 255) for m in made)       # PIL rounds to bytes, torch does not


def test_a_picture_is_cut_from_its_centre_and_never_stretched():
    wide = torch.zeros(3, 32, 96)
    wide[:, :, 24:72] = 1                               # exactly the middle 48 columns
    assert picture(wide, G).min() == 1
    tall = torch.zeros(3, 64, 48)
    tall[:, 16:48] = 1
    assert picture(tall, G).min() == 1
    assert torch.equal(picture(wide[:, :, 24:72] * 0.3, G), torch.full((1, 3, 32, 48), 0.3))


def test_grey_and_transparent_pictures_are_pictures():
    for mode in ("L", "RGBA", "P", "1"):
        assert picture(Image.new(mode, (20, 20)), G).shape == (1, 3, 32, 48)
    assert picture(Image.new("RGB", (1, 500)), G).shape == (1, 3, 32, 48)


def packed(image, format="PNG", **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def test_pictures_come_in_upright_and_white_where_they_are_transparent():
    tall = Image.new("RGB", (40, 80), "blue")
    tall.paste("red", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6                                            # the camera was held sideways: red belongs to the right
    turned = read_picture(packed(tall, "JPEG", exif=exif, quality=95))
    assert turned.size == (80, 40)
    shown = np.asarray(fitted(turned, Geometry(32, 64)))
    assert shown.shape == (32, 64, 3) and shown[16, 60, 0] > 200 and shown[16, 4, 2] > 200
    assert read_picture(packed(Image.new("RGBA", (9, 9), (255, 0, 0, 0)))).getpixel((4, 4)) == (255, 255, 255)
    assert read_picture(Image.new("LA", (9, 9), (0, 0))).getpixel((4, 4)) == (255, 255, 255)
    assert fitted(read_picture(packed(Image.new("L", (1, 1), 77))), G).getpixel((3, 3)) == (77, 77, 77)


@pytest.mark.parametrize("data, why", [
    (b"GIF89a but not really", "could not be read as a picture"), (b"", "could not be read as a picture"),
    (packed(Image.new("RGB", (64, 64), "red"))[:90], "could not be read as a picture"),
    (packed(Image.new("1", (9000, 9000))), "9000 x 9000 pixels"), (7, "a picture came as int")])
def test_what_is_no_picture_or_too_big_is_refused_in_one_sentence(data, why):
    with pytest.raises(ValueError, match=why):
        read_picture(data)


def test_files_are_refused_by_name(tmp_path, monkeypatch):
    Image.new("RGB", (300, 300), "red").save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    (tmp_path / "not.jpg").write_text("hello")
    for name in ("cut.png", "not.jpg"):
        with pytest.raises(ValueError, match=f"{name} could not be read as a picture"):
            picture(tmp_path / name, G)
    Image.new("1", (300, 300)).save(tmp_path / "huge.png")
    monkeypatch.setattr("msk.picture.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="huge.png has 300 x 300 pixels"):
        picture(tmp_path / "huge.png", G)
    with pytest.raises(ValueError, match="huge.png has .* MB: give one of at most"):
        read_picture(tmp_path / "huge.png", most_bytes=10)
    with pytest.raises(FileNotFoundError, match="no picture at"):
        picture(tmp_path / "gone.png", G)
    for wrong in (np.zeros((4, 4)), torch.zeros(4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), 7):
        with pytest.raises(ValueError, match="a picture came as"):
            picture(wrong, G)
