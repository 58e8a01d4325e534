"""The page's look. Light only: the charts are drawn on white."""

CSS = """
:root { color-scheme: light; --ink: #1d2126; --quiet: #5c646e; --line: #dfe3e8; --good: #17703f; --bad: #a8321f; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: #fff;
  margin: 0 auto; max-width: 76rem; padding: 1rem clamp(.9rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .6rem 0; }
h2 { font-size: 1.3rem; margin: 0; }
h3 { font-size: 1.05rem; margin: 2rem 0 .25rem; }
h4 { font-size: .9rem; margin: 0 0 .25rem; color: var(--quiet); overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); padding-top: 1.5rem; margin-top: 2rem; }
small { display: block; font-size: .8rem; color: var(--quiet); font-weight: 400; line-height: 1.35; }
.legend { list-style: none; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; }
.legend li { overflow-wrap: anywhere; }
.legend small { display: inline; }
.sign { margin-right: .4em; }
.variant { margin: .1rem 0 .8rem; color: var(--quiet); }
.notes { background: #fff6df; border-left: 4px solid #d9a21b; padding: .6rem 1rem .6rem 2rem; margin: .8rem 0; }
.quiet { color: var(--quiet); font-size: .88rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .55rem 1.2rem .55rem 0; border-bottom: 1px solid var(--line); }
thead th { font-size: .88rem; color: var(--quiet); overflow-wrap: break-word; }
td { font-variant-numeric: tabular-nums; min-width: 6.2rem; }
td b { font-size: 1.1rem; }
.change { display: inline-block; margin-top: .25rem; font-size: .85rem; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); } .same { color: var(--quiet); font-weight: 400; }
td small { white-space: nowrap; }
.overview { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1rem 2.5rem; align-items: start; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem;
  align-items: start; }
figure { margin: 1rem 0 0; max-width: 30rem; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .88rem; color: var(--quiet); }
.example { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; margin: .8rem 0; }
.example > p { margin: 0 0 .4rem; }
.example .change { margin: 0 0 0 .5rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
.pair > div { min-width: 0; }
.answer { margin: 0 0 .3rem; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: #ffd9d2; color: inherit; border-bottom: 2px solid var(--bad); padding: 0 .1em; }
details { margin: .4rem 0; }
summary { cursor: pointer; color: var(--quiet); font-size: .88rem; overflow-wrap: anywhere; }
details p { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; background: #f5f6f8; padding: .8rem;
  border-radius: .4rem; }
@media (max-width: 40rem) {
  .pair { grid-template-columns: 1fr; gap: .9rem; }
  td small { font-size: .74rem; }
  .wide thead { display: none; }
  .wide tr { display: block; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .wide th, .wide td { display: block; border: 0; padding: .15rem 0; }
  .wide td::before { content: attr(data-run); display: block; font-size: .8rem; font-weight: 600; color: var(--quiet); }
  .wide td { padding-top: .5rem; }
  .wide td b, .wide td small, .wide td .change { display: inline-block; margin: 0 .5rem 0 0; }
  th, td { padding-right: .6rem; }
  td { min-width: 5.4rem; }
}
@media (max-width: 60rem) { .overview { grid-template-columns: minmax(0, 1fr); } }
@media print { details:not([open]) { display: none; } }
"""
