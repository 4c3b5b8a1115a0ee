#!/usr/bin/env python3
"""Makes the bundled fonts from their sources: needs Python with fonttools.

    subset.py INTER_DIR JETBRAINS_DIR PHOSPHOR_DIR

INTER_DIR holds Inter-Regular.otf and Inter-SemiBold.otf, JETBRAINS_DIR JetBrainsMono-Regular.ttf (Debian packages
fonts-inter and fonts-jetbrains-mono), PHOSPHOR_DIR Phosphor.ttf and selection.json (src/regular of the npm package
@phosphor-icons/web 2.1.2). Writes the subsets beside this file and ../../src/icons.rs.

Digits of Inter are made tabular by mapping them to the glyphs of its `tnum` feature, because the text layout applies
no optional features; contextual alternates and ligatures are left out, because tokens must show as they are.
"""
import json
import pathlib
import sys

from fontTools import subset
from fontTools.ttLib import TTFont

HERE = pathlib.Path(__file__).parent
RANGES = [
    (0x20, 0x7E), (0xA0, 0x17F), (0x18F, 0x192), (0x1E9E, 0x1E9E), (0x2C6, 0x2DD), (0x300, 0x304), (0x370, 0x3FF),
    (0x400, 0x45F), (0x490, 0x491), (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20BF), (0x2100, 0x214F),
    (0x2150, 0x218F), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2308, 0x230B), (0x2400, 0x2426), (0x2500, 0x25FF),
    (0x2713, 0x2717), (0x27E8, 0x27E9), (0xFFFD, 0xFFFD),
]
ICONS = """
arrow-bend-up-left arrow-clockwise arrow-counter-clockwise arrow-down arrow-elbow-down-right arrow-left arrow-right
arrow-square-out arrow-u-up-left arrow-u-up-right arrow-up arrows-clockwise arrows-in arrows-left-right arrows-out
book-open brain broadcast bug camera caret-double-down caret-down caret-left caret-right caret-up chart-bar
chart-line chat-circle check check-circle circle circle-half circle-notch clock cloud-arrow-down columns command compass
copy cpu crosshair cube cursor-click database dice-five dots-six-vertical dots-three dots-three-vertical
download-simple drop-half export eye eye-slash fast-forward file file-text flask floppy-disk folder folder-open funnel
gauge gear-six git-branch git-diff globe graph graphics-card grid-four hard-drives hash hourglass house image info
keyboard lightning link list list-bullets lock-simple lock-simple-open magnifying-glass magnifying-glass-minus
magnifying-glass-plus memory minus minus-circle monitor moon note-pencil package palette pause pencil-simple play plug
plugs plugs-connected plus power prohibit pulse question record robot rows scales selection share-network
shuffle sidebar-simple skip-back skip-forward sliders-horizontal sort-ascending sort-descending sparkle square
squares-four stack star stop sun swap table tag target terminal-window text-aa text-align-left thermometer
trash tree-structure tree-view upload-simple user warning warning-circle wrench x x-circle
""".split()


def cut(source, target, codes, features, digits=None):
    font = TTFont(source)
    if digits:
        cmap = font.getBestCmap()
        single = {}
        for record in font["GSUB"].table.FeatureList.FeatureRecord:
            if record.FeatureTag == digits:
                for index in record.Feature.LookupListIndex:
                    for table in font["GSUB"].table.LookupList.Lookup[index].SubTable:
                        single.update(getattr(table, "ExtSubTable", table).mapping)
        for table in font["cmap"].tables:
            for code in range(0x30, 0x3A):
                if code in table.cmap:
                    table.cmap[code] = single.get(cmap[code], cmap[code])
    options = subset.Options()
    options.layout_features = features
    options.hinting = True
    options.desubroutinize = True
    options.name_IDs = ["*"]
    options.notdef_outline = True
    options.glyph_names = False
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=codes)
    cutter.subset(font)
    font.save(HERE / target)
    print(f"{target}: {(HERE / target).stat().st_size} bytes, {len(font.getBestCmap())} characters")


def main():
    inter, jetbrains, phosphor = map(pathlib.Path, sys.argv[1:4])
    text = [code for first, last in RANGES for code in range(first, last + 1)]
    kerning = ["kern", "mark", "mkmk", "ccmp"]
    cut(inter / "Inter-Regular.otf", "Inter-Regular.otf", text, kerning, "tnum")
    cut(inter / "Inter-SemiBold.otf", "Inter-SemiBold.otf", text, kerning, "tnum")
    cut(jetbrains / "JetBrainsMono-Regular.ttf", "JetBrainsMono-Regular.ttf", text, ["mark", "mkmk", "ccmp"])
    icons = json.load(open(phosphor / "selection.json"))["icons"]
    known = {name.strip(): i["properties"]["code"] for i in icons for name in i["properties"]["name"].split(",")}
    codes = {name: known[name] for name in sorted(ICONS)}
    cut(phosphor / "Phosphor.ttf", "Phosphor.ttf", list(codes.values()), [])
    with open(HERE / "../../src/icons.rs", "w") as out:
        out.write("//! Icons of the Phosphor font (regular weight). Made by `assets/fonts/subset.py`.\n\n")
        for name, code in codes.items():
            out.write(f"/// Phosphor's `{name}`.\npub const {name.upper().replace('-', '_')}: &str = \"\\u{{{code:04x}}}\";\n")


main()
