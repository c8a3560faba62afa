"""The look of the report: light and dark, wide screen and phone, nothing loaded from elsewhere."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5d6878; --line: #dfe3e9;
  --accent: #2563c9; --bar: #cfe0fb; --heat: 37, 99, 201; --warn: #8a5a00; --chip: #eef1f5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #11151b; --card: #1a2029; --ink: #e6eaf0; --soft: #98a4b5; --line: #2d3643;
    --accent: #7fb0ff; --bar: #24426f; --heat: 96, 156, 255; --warn: #e3b341; --chip: #262e3a;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .3rem; letter-spacing: -.01em; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; }
p { margin: .2rem 0 .8rem; max-width: 46rem; }
.soft, .note { color: var(--soft); }
.note { font-size: .86rem; }
.warnings { border-left: .25rem solid #b45309; padding: .3rem 1rem .3rem 2rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line);
  margin-top: 1.1rem; }
nav ul { max-width: 76rem; margin: 0 auto; padding: .55rem 1.25rem; display: flex; gap: 1.3rem;
  list-style: none;
  overflow-x: auto; white-space: nowrap; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem;
  margin: 1.4rem 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tile { padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.25; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile span { display: block; }
.card { overflow-x: auto; margin: .7rem 0; }
table.even { table-layout: fixed; min-width: 34rem; }
table.even th:first-child { width: 10.5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .9rem; border-bottom: 1px solid var(--line);
  vertical-align: middle; }
tr:last-child > * { border-bottom: 0; }
thead th { font-size: .8rem; font-weight: 600; color: var(--soft); white-space: nowrap; }
tbody th { font-weight: 550; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.bar { min-width: 9rem; width: 30%;
  background: linear-gradient(90deg, var(--bar) calc(var(--v) * 1%), transparent 0)
  .9rem center / calc(100% - 1.8rem) 1.5rem no-repeat; }
td.bar span { padding-left: .5rem; font-weight: 600; }
td.heat { background: rgba(var(--heat), calc(var(--v) * .0055)); text-align: center; }
thead th.heat { text-align: center; white-space: normal; }
td.note { min-width: 15rem; }
header p { max-width: none; }
td.oracle, th.oracle { color: var(--soft); font-style: italic; }
tr.mean > * { border-bottom: 2px solid var(--line); font-weight: 650; }
.dot { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .5rem;
  vertical-align: -.08rem; border: 1px solid rgba(128, 128, 128, .55); }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; margin: .5rem 0 .9rem; padding: 0;
  list-style: none;
  font-size: .88rem; }
.hatch { background: repeating-linear-gradient(135deg, #fff 0 2px, #999 2px 5px); }
.heatbar { display: inline-block; width: 5.5rem; height: .75rem; border-radius: .2rem; margin: 0 .45rem;
  vertical-align: -.05rem; }
.plot { padding: .8rem; max-width: 40rem; }
.board td .note { white-space: pre; font-weight: normal; }
.chart { display: block; width: 100%; font-size: 13px; fill: var(--soft); }
.chart line { stroke: var(--line); }
.chart polyline { fill: none; stroke: var(--accent); stroke-width: 2.5; }
.chart line.span { stroke: var(--accent); stroke-width: 2; }
.chart circle { fill: var(--warn); }
.row { padding: .8rem 1rem 1rem; }
.row h3 { margin: 0 0 .6rem; display: flex; flex-wrap: wrap; gap: .3rem .5rem; align-items: baseline;
  overflow-wrap: anywhere; }
.row h3 .note { font-weight: 400; margin-left: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr));
  gap: .8rem; }
.cards .card { margin: 0; }
.cards figure { flex: 1 1 8rem; min-width: 0; }
.cards .row h3 .note { margin-left: 0; flex-basis: 100%; }
.board th, .board td { padding: .45rem .5rem; }
.board thead th { white-space: normal; text-align: right; vertical-align: bottom; }
.board thead th:first-child { text-align: left; }
.board tbody th { min-width: 13rem; white-space: normal; overflow-wrap: break-word; }
.wide td { width: 75%; overflow-wrap: anywhere; }
.wide tbody th { white-space: normal; }
.board td { text-align: right; }
.board td.best { background: var(--bar); font-weight: 650; }
.board .group { border-left: 1px solid var(--line); }
.chip { background: var(--chip); border-radius: 1rem; padding: .05rem .65rem; font-size: .82rem;
  font-weight: 500; }
.strip { display: flex; gap: .7rem; overflow-x: auto; padding-bottom: .2rem; }
figure { margin: 0; flex: 1 0 11.5rem; max-width: 16rem; }
figure img, .missing { display: block; width: 100%; border-radius: .35rem; background: var(--chip); }
.missing { aspect-ratio: 4 / 3; display: grid; place-items: center; color: var(--soft); }
figcaption { font-size: .8rem; color: var(--soft); margin-top: .3rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 1rem;
  align-items: start; }
.facts td { overflow-wrap: anywhere; }
pre { margin: 0; padding: .9rem 1.1rem;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-x: auto; }
summary { cursor: pointer; padding: .6rem 1rem; font-weight: 550; }
footer { padding-top: 1.5rem; padding-bottom: 3rem; font-size: .86rem; color: var(--soft); }
@media (max-width: 40rem) {
  header, main, footer { padding-left: .8rem; padding-right: .8rem; }
  nav ul { padding-left: .8rem; padding-right: .8rem; }
  th, td { padding: .4rem .6rem; }
  tbody th { white-space: normal; min-width: 7rem; }
  .row h3 .note { margin-left: 0; flex-basis: 100%; }
  figure { flex-basis: 60vw; }
}
@media print { nav { display: none; } .card { break-inside: avoid; } }
"""
