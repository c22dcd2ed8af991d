"""The page's style sheet: one column on a phone, several on a wide screen, light or dark as the reader's system."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f6f3; --card: #ffffff; --ink: #1c2024; --soft: #5c656e; --rule: #e2e3df; --track: #eeefec;
  --accent: #0b62a8; --warn: #8a5a00; --warnback: #fdf4df;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5538c; --c4: #c58900; --c5: #3fa2dd; --c6: #6f6f6f;
  --c7: #7a5cc8;
  --p0: #2f3b47; --p1: #7f8c99; --p2: #b9c2cb; --p3: #d55e00; --p4: #dcdfd9; }
@media (prefers-color-scheme: dark) { :root {
  --page: #121517; --card: #1b1f22; --ink: #e7e9eb; --soft: #9ba5ae; --rule: #30363b; --track: #2a2f34;
  --accent: #6cb8f5; --warn: #f0c674; --warnback: #2d2718;
  --c0: #4fb0ea; --c1: #ff8f4f; --c2: #35c99c; --c3: #e391c4; --c4: #efb93c; --c5: #9bd6f7; --c6: #b0b0b0;
  --c7: #b49cf0;
  --p0: #d5dce2; --p1: #93a0ab; --p2: #66727c; --p3: #ff8f4f; --p4: #434a50; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.4rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 78rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.6rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .35rem; }
h3 { font-size: 1rem; margin: 1.3rem 0 .5rem; }
h4 { font-size: .9rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { margin: .3rem 0 .7rem; max-width: 46rem; }
.soft, .note, .unit, footer { color: var(--soft); }
.note { font-size: .85rem; margin: .3rem 0 0; }
.unit { font-weight: 400; font-size: .82rem; }
a { color: var(--accent); }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--rule);
  margin-top: .9rem; }
nav div { max-width: 78rem; margin: 0 auto; padding: .5rem 1.25rem; display: flex; gap: 1.1rem; overflow-x: auto;
  scrollbar-width: none; }
nav a { white-space: nowrap; text-decoration: none; font-size: .9rem; }
nav a:hover { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1.1rem 1.25rem 1.25rem;
  margin: 1.1rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: .4rem 0 .7rem; max-width: none;
  font-size: .88rem; }
.key { display: inline-flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; }
.swatch { width: .95rem; height: .55rem; border-radius: 2px; background: currentColor; flex: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .8rem;
  margin: 1rem 0 .2rem; }
.card { border: 1px solid var(--rule); border-top: 4px solid currentColor; border-radius: 8px;
  padding: .7rem .85rem; }
.card > * { color: var(--ink); }
.card .name { font-weight: 600; overflow-wrap: anywhere; line-height: 1.25; }
.card .figure { font-size: 2rem; font-weight: 650; line-height: 1.2; letter-spacing: -.02em; }
.card .what { color: var(--soft); font-size: .84rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr));
  gap: 1rem 1.4rem; }
figure.chart { margin: 0; min-width: 0; max-width: 38rem; }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: .15rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
.chart text { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.tick { fill: var(--soft); } .end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
.reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 5 4; }
.line { fill: none; stroke: currentColor; stroke-width: 1.9; stroke-linejoin: round; }
.dot { fill: currentColor; } .band { fill: currentColor; opacity: .15; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
.p0 { color: var(--p0); } .p1 { color: var(--p1); } .p2 { color: var(--p2); } .p3 { color: var(--p3); }
  .p4 { color: var(--p4); }
.scroll { overflow-x: auto; margin: .9rem 0 .6rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td.number, th.number { text-align: right; white-space: nowrap; }
td.words { overflow-wrap: anywhere; min-width: 7rem; max-width: 24rem; }
tbody th { color: var(--ink); font-weight: 600; overflow-wrap: break-word; min-width: 6rem; max-width: 16rem; }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem 1.8rem; }
.bars.dense { grid-template-columns: repeat(auto-fill, minmax(min(9.5rem, 100%), 1fr)); gap: .8rem 1.5rem; }
.barline { display: flex; align-items: center; gap: .5rem; margin: 2px 0; }
.track { flex: 1; display: flex; height: .72rem; background: var(--track); border-radius: 3px; overflow: hidden; }
.bar, .piece { display: block; background: currentColor; height: 100%; }
.value { font-size: .8rem; font-variant-numeric: tabular-nums; min-width: 2.6rem; text-align: right; }
.value.wide { min-width: 8.5rem; }
h4.apart { margin-top: 1.1rem; }
.stackline { display: grid; grid-template-columns: minmax(6rem, 14rem) 1fr auto; gap: .7rem;
  align-items: center; margin: .3rem 0;
  font-size: .9rem; }
.stackline .track { height: 1rem; } .rowname { overflow-wrap: anywhere; }
.samples { display: grid; gap: 1.1rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, calc(var(--columns) * 9rem)), 1fr)); }
.pictures { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: .6rem; }
.pictures figure { margin: 0; min-width: 0; } .pictures figcaption { font-size: .8rem; font-weight: 500; }
.pictures.wide { grid-template-columns: minmax(0, 1fr); } .pictures.wide figcaption { margin-bottom: .3rem; }
.pictures.stamps { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; font-size: .82rem; }
.pictures.stamps img { width: 100%; } .pictures.stamps .key { display: flex; }
.picture { border-radius: 4px; } .pixelated { image-rendering: pixelated; }
img { max-width: 100%; height: auto; border-radius: 4px; background: #ffffff; display: block; }
.boxlabel { font-family: "DejaVu Sans", Verdana, sans-serif; font-weight: 600; }
details { margin: .8rem 0 0; } summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
pre { overflow-x: auto; font: .78rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--track);
  padding: .8rem; border-radius: 6px; max-height: 32rem; }
code { font: .92em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
ul { padding-left: 1.15rem; margin: .4rem 0 .6rem; max-width: 52rem; }
.absent { color: var(--soft); } .problem { color: var(--warn); background: var(--warnback); border-radius: 6px;
  padding: .45rem .7rem; }
footer { font-size: .85rem; padding-bottom: 2.5rem; }
@media (max-width: 40rem) { header, main, footer { padding-left: .75rem; padding-right: .75rem; }
  nav div { padding-left: .75rem; padding-right: .75rem; } section { padding: .9rem .8rem 1rem; }
  .samples .pictures { grid-template-columns: repeat(min(var(--columns), 2), minmax(0, 1fr)); }
  .cards { grid-template-columns: repeat(2, 1fr); }
  .stackline { grid-template-columns: 1fr; gap: .15rem; } .value.wide { text-align: left; } }
@media (max-width: 40rem) { .pictures.wide figure { overflow-x: auto; }
  .pictures.wide img { width: 46rem; max-width: none; } }
@media print { nav { display: none; } section { break-inside: avoid; } }
"""
