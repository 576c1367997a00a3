"""The style sheet of the report; light or dark like the reader's system."""

CSS = """\
:root {
  color-scheme: light dark;
  --ink: #1d2430; --faint: #5f6875; --paper: #ffffff; --card: #f6f7f9; --edge: #dfe3e8;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --faint: #9aa4b2; --paper: #14171c; --card: #1c2027; --edge: #323842; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1280px; padding: 40px 32px 80px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 48px 0 4px; }
h3 { font: 600 15px ui-monospace, "SF Mono", Consolas, monospace; margin: 0; }
p { margin: 4px 0 12px; max-width: 80ch; }
a { color: inherit; }
.faint, figcaption, small { color: var(--faint); }
.metrics { display: grid; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); gap: 12px; margin: 28px 0; }
.metric { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 14px 16px; }
.metric b { font-size: 27px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.metric.main { border-color: var(--ink); grid-column: span 2; }
.metric.main b { font-size: 40px; }
.metric small { display: block; line-height: 1.35; }
.metric code { font-size: 12.5px; display: block; }
.bar { display: flex; height: 20px; gap: 2px; border-radius: 4px; overflow: hidden; }
.bar i { min-width: 2px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 10px 0 20px; padding: 0; list-style: none; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 7px; }
.strip { display: flex; flex-wrap: wrap; gap: 3px; }
.strip a { width: 15px; height: 15px; border-radius: 2px; }
.strip a:hover, .strip a:focus { outline: 2px solid var(--ink); }
.curves { overflow-x: auto; }
.curves svg { max-width: max(100%, 720px); height: auto; margin-top: 12px; }
.task {
  background: var(--card); border: 1px solid var(--edge); border-left: 5px solid var(--outcome); border-radius: 8px;
  margin: 14px 0; padding: 14px 18px 16px; content-visibility: auto; contain-intrinsic-size: auto 420px;
}
.task header { display: flex; flex-wrap: wrap; gap: 2px 18px; align-items: baseline; }
.row { display: flex; flex-wrap: wrap; gap: 14px 28px; margin-top: 12px; align-items: flex-start; }
.pair { display: flex; gap: 8px; align-items: center; }
.pair::before { content: attr(data-number); color: var(--faint); font-size: 12px; align-self: flex-start; }
.test { border-top: 1px solid var(--edge); margin-top: 12px; padding-top: 2px; }
figure { margin: 0; }
figcaption { font-size: 13px; white-space: nowrap; }
.good { color: #15915b; font-weight: 600; }
.bad { color: #c8463c; font-weight: 600; }
.none {
  display: grid; place-items: center; width: 90px; height: 90px; color: var(--faint);
  border: 1px dashed var(--faint); font-size: 13px;
}
.note { font-size: 13.5px; color: var(--faint); margin: 8px 0 0; overflow-wrap: anywhere; max-width: none; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 3px 18px 3px 0; border-bottom: 1px solid var(--edge); }
td { overflow-wrap: anywhere; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.number, th.number { text-align: right; }
th { font-weight: 500; color: var(--faint); white-space: nowrap; }
table.changes { margin: 14px 0 10px; }
table.changes td { padding-left: 26px; }
td code { white-space: nowrap; }
tr.main td, tr.main code { font-weight: 700; color: var(--ink); }
small.before { color: var(--ink); margin-top: 3px; }
details { margin-top: 14px; }
summary { cursor: pointer; font-weight: 600; }
details.links { margin: 4px 0 8px; font-size: 14px; }
details.links summary { font-weight: 400; }
.wide { overflow-x: auto; }
.wide td { font-size: 13.5px; }
h3.words { font: 600 16px system-ui, sans-serif; margin-top: 24px; }
pre { margin: 6px 0 0; padding: 8px; background: var(--paper); border: 1px solid var(--edge); overflow-x: auto; }
.task:target { outline: 2px solid var(--ink); }
@media print { .task { break-inside: avoid; content-visibility: visible; } }
"""
