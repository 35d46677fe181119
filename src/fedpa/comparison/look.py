"""How the page of a comparison looks, and what it does when it is touched."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f7f8;--ink:#1b1f23;--soft:#57606a;--rule:#d6dade;--strong:#8b949e;
--link:#0b57d0;--baseline:#3d4650;--device:#a64b00;--ceiling:#8a2f8f;--federated:#0a66c2;--adapter:#0b7a4b}
@media (prefers-color-scheme:dark){:root{--paper:#0f1317;--card:#181d23;--ink:#e6eaee;--soft:#a2adb8;--rule:#2c343c;
--strong:#6b7682;--link:#8ab4f8;--baseline:#c3ccd5;--device:#f0a050;--ceiling:#df8fe4;--federated:#6db3ff;
--adapter:#4fd09a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1112px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;line-height:1.25;margin:.4em 0}
h2{font-size:1.3rem;margin:2em 0 .5em;border-top:1px solid var(--rule);padding-top:1em}
h3{font-size:1.05rem;margin:2em 0 .3em}
p,li{max-width:72ch}
a{color:var(--link)}
code{font-size:.85em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:1em 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.soft,figcaption{color:var(--soft);font-size:.9rem}
.bar-of-tools{position:sticky;top:0;z-index:3;background:var(--paper);border-bottom:1px solid var(--rule);padding:8px 0;
display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;font-size:.85rem}
.bar-of-tools fieldset{border:0;padding:0;margin:0;display:flex;flex-wrap:wrap;gap:2px 12px;min-width:0}
.bar-of-tools legend{float:left;color:var(--soft);padding:0 8px 0 0}
.bar-of-tools label{display:inline-flex;align-items:center;gap:4px;min-height:24px;cursor:pointer}
select{font:inherit;max-width:100%;color:var(--ink);background:var(--card);border:1px solid var(--strong);
border-radius:4px;padding:3px}
.no-script .bar-of-tools{display:none}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:6px;margin:.5em 0}
.scroll:focus-visible,svg:focus-visible{outline:2px solid var(--link);outline-offset:2px}
table{border-collapse:separate;border-spacing:0;font-size:.82rem;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid var(--rule);vertical-align:top}
thead th{background:var(--card);color:var(--soft);font-weight:600;vertical-align:bottom;
white-space:normal;min-width:5em}
td.t,th.t{text-align:left;white-space:normal;min-width:9em;max-width:15em}
th.first{position:sticky;left:0;z-index:1;text-align:left;background:var(--paper);font-weight:500;white-space:normal;
min-width:225px;max-width:260px;border-right:1px solid var(--rule)}
thead th.first{background:var(--card);z-index:2}
tr.family th{background:var(--card);color:var(--soft);font-size:.78rem;border-right:0}
td small{color:var(--soft);display:block;font-size:.92em}
td .p-low{font-weight:700;color:var(--ink)}
tr.m{cursor:pointer}
tr.m:hover th,tr.m:hover td,tr.on th,tr.on td{background:var(--card)}
tr.on th{box-shadow:inset 3px 0 var(--c)}
.n{color:var(--soft);font-size:.9em;display:inline-block;min-width:1.6em}
.error{color:var(--device);white-space:normal;text-align:left}
figure{margin:0 0 1em}
figure>svg{display:block;max-width:100%;height:auto}
figure>svg.wide{display:none}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.f-baseline{--c:var(--baseline)}.f-device{--c:var(--device)}.f-ceiling{--c:var(--ceiling)}
.f-federated{--c:var(--federated)}.f-adapter{--c:var(--adapter)}
.key{width:14px;height:14px;flex:none;vertical-align:-2px}
.mark{fill:var(--c);stroke:var(--paper);stroke-width:1}
.hollow{fill:var(--paper);stroke:var(--c);stroke-width:1.6}
.bar{stroke:var(--c);stroke-width:1.6;fill:none}
.scatter .bar{stroke-width:1;opacity:.45}
.line{stroke:var(--c);stroke-width:1.4;fill:none;opacity:.85}
.d1{stroke-dasharray:6 3}.d2{stroke-dasharray:2 2.5}.d3{stroke-dasharray:8 3 2 3}
.lines .mark{stroke-width:.5}
.leader{stroke:var(--strong);stroke-width:.7;opacity:.7}
.grid{stroke:var(--rule);stroke-width:1}
.zero{stroke:var(--ink);stroke-width:1.2}
.apart{fill:var(--card)}
.hit{fill:transparent}
svg .tick,svg .axis{fill:var(--soft)}
svg .name{fill:var(--ink);paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
.lines .name,.scatter .name{fill:var(--c)}
svg .m{cursor:pointer}
.has-on svg .m:not(.on){opacity:.18}
.has-on svg .on .line{stroke-width:3;opacity:1}
.has-on svg .on .name{font-weight:700}
.has-on .scatter .on .bar{opacity:1;stroke-width:2}
.no-baseline .f-baseline.m,.no-device .f-device.m,.no-ceiling .f-ceiling.m,.no-federated .f-federated.m,
.no-adapter .f-adapter.m{display:none}
.names ol{columns:2;column-gap:14px;font-size:.8rem;padding:0;margin:.3em 0;list-style:none}
.names li{break-inside:avoid;cursor:pointer;line-height:1.35;padding:1px 0}
.names .on{font-weight:700}
details{margin:.4em 0}
summary{cursor:pointer;color:var(--link);font-size:.9rem}
[hidden]{display:none!important}
@media (min-width:1100px){figure>svg.wide{display:block}figure>svg.phone,.names{display:none}}
@media (max-width:1099px){figure>svg.phone{width:100%;max-width:520px}}
@media (max-width:600px){h1{font-size:1.35rem}
th.first{min-width:128px;max-width:138px}.bar-of-tools{position:static}}
@media print{.bar-of-tools{display:none}.scroll{overflow:visible}}
"""

SCRIPT = """
document.documentElement.classList.remove('no-script');
for (const section of document.querySelectorAll('section.task')) {
  const select = section.querySelector('select');
  const show = (number) => {
    for (const one of section.querySelectorAll('[data-m]')) one.classList.toggle('on', one.dataset.m === number);
    section.classList.toggle('has-on', number !== '');
    select.value = number;
  };
  select.addEventListener('change', () => show(select.value));
  section.addEventListener('click', (event) => {
    const one = event.target.closest('[data-m]');
    if (one) show(one.dataset.m === select.value ? '' : one.dataset.m);
  });
  for (const box of section.querySelectorAll('input[data-family]'))
    box.addEventListener('change', () => section.classList.toggle('no-' + box.dataset.family, !box.checked));
  const choose = (metric) => {
    for (const one of section.querySelectorAll('[data-metric]')) one.hidden = one.dataset.metric !== metric;
  };
  for (const radio of section.querySelectorAll('input[type=radio]')) {
    radio.addEventListener('change', () => choose(radio.value));
    if (radio.checked) choose(radio.value);
  }
}
"""
