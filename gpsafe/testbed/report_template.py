"""The page around the guarantee report: one style sheet for light, dark and paper, and the frame."""

from __future__ import annotations

from string import Template

# Okabe-Ito hues, darkened (or, on dark pages, lightened) until text on them has a contrast of at least 4.5.
# Blue and vermilion stay apart for every common colour blindness; each badge also has a sign and the word.
STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d5dae0;--card:#f6f8fa;
--tint:#e3eef6;
--holds:#00639c;--violated:#b34a00;--inconclusive:#f0c350;--inconclusive-ink:#2b2000;--unproven:#8a3470;
--error:#24292f;--badge-ink:#fff;--axis:#8b949e;--threshold:#1b1f24}
@media (prefers-color-scheme:dark){:root{--page:#14181d;--ink:#e6e9ec;--soft:#a3adb8;--line:#363d46;
--card:#1d232a;
--tint:#1d3344;--holds:#6cb8e8;--violated:#ff9a57;--inconclusive:#f0c350;--unproven:#e59fcb;--error:#e6e9ec;
--badge-ink:#10141a;--axis:#7d8894;--threshold:#e6e9ec}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe
UI",Roboto,
"Helvetica Neue","Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:74rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.3rem;margin:2.6rem 0 .7rem}
h3{font-size:1.12rem;margin:1.6rem 0 .7rem}
a{color:inherit;text-decoration-color:var(--soft);text-underline-offset:.15em}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:3px solid var(--holds);outline-offset:2px}
.summary{font-size:1.1rem;margin:0 0 1.3rem;padding:.75rem 1rem;border-left:.4rem solid var(--holds);
background:var(--card)}
.summary.bad{border-left-color:var(--violated)}
.soft,.note{color:var(--soft)} .note{font-size:.92rem;max-width:60rem}
dl.environment{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:.1rem 1.6rem;
margin:0;
font-size:.88rem}
dl.environment div{display:flex;gap:.6rem;border-bottom:1px solid var(--line);padding:.18rem 0}
dl.environment div.wide{grid-column:1/-1}
dl.environment dt{color:var(--soft);flex:none;min-width:5.4rem} dl.environment dd{margin:0;
overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
table.grades{width:auto;margin:.7rem 0;font-size:.86rem} table.grades td,table.grades th{padding:.2rem .8rem .2rem 0}
th,td{padding:.45rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--axis);font-weight:600;white-space:nowrap}
tbody th{font-weight:600;font-family:ui-monospace,SFMono-Regular,Menlo,"Liberation Mono",monospace;
font-size:.86rem}
.number{text-align:right;white-space:nowrap} .range{display:block;color:var(--soft)}
.badge{display:inline-block;padding:.06rem .5rem;border-radius:.3rem;font-weight:700;font-size:.8rem;
letter-spacing:.02em;white-space:nowrap;background:var(--error);color:var(--badge-ink);
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.badge.HOLDS{background:var(--holds)} .badge.VIOLATED{background:var(--violated)}
.badge.INCONCLUSIVE{background:var(--inconclusive);color:var(--inconclusive-ink)}
.badge.UNPROVEN{background:var(--unproven)}
.badge.expected{background:transparent;color:var(--ink);box-shadow:inset 0 0 0 1.5px var(--axis)}
section.check{border:1px solid var(--line);border-radius:.5rem;padding:1rem 1.2rem 1.1rem;margin:0 0 1.2rem}
section.check header{display:flex;flex-wrap:wrap;gap:.4rem .8rem;align-items:center;
justify-content:space-between}
section.check>p{margin:.55rem 0;max-width:60rem} .claim{font-size:1.04rem}
dl.facts{display:grid;grid-template-columns:8.5rem 1fr;gap:.25rem .9rem;margin:.7rem 0;font-size:.92rem}
dl.facts dt{color:var(--soft)} dl.facts dd{margin:0;overflow-wrap:anywhere}
dl.facts ul{margin:0;padding-left:1.1rem}
.alarm{border-left:.4rem solid var(--violated);background:var(--card);padding:.5rem .8rem;
overflow-wrap:anywhere}
.alarm.UNPROVEN{border-color:var(--unproven)} .alarm.INCONCLUSIVE{border-color:var(--inconclusive)}
.alarm.ERROR{border-color:var(--error)}
svg.interval{display:block;width:100%;max-width:34rem;height:auto;margin:.6rem 0 .2rem}
svg.interval text{font:12px system-ui,"Liberation Sans",Arial,sans-serif;fill:var(--soft)}
svg.interval .bar{fill:var(--axis)} svg.interval .HOLDS{fill:var(--holds)} svg.interval
.VIOLATED{fill:var(--violated)}
svg.interval .INCONCLUSIVE{fill:var(--inconclusive)} svg.interval .region{fill:var(--tint)}
svg.interval .limit{stroke:var(--threshold);stroke-width:2} svg.interval .axis{stroke:var(--axis)}
svg.interval .estimate{fill:var(--page);stroke:var(--ink);stroke-width:1.5}
figure{margin:.8rem 0 0} figure img{display:block;width:100%;min-width:32rem;max-width:56rem;height:auto}
figure .scroll{border:1px solid var(--line);border-radius:.3rem;padding:.4rem}
.cards{columns:25rem 2;column-gap:1rem;margin:0 0 1.2rem}
.card{break-inside:avoid;margin:0 0 1rem;border:1px solid var(--line);border-radius:.5rem;padding:.7rem 1rem;
background:var(--card);font-size:.94rem}
.card h2{margin:0 0 .35rem;font-size:1.05rem} .card p{margin:.35rem 0} .card ul{margin:.2rem 0;padding-left:1.1rem}
.card li{margin:.25rem 0}
.headlines{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,32rem),1fr));gap:.2rem 1rem}
@media (min-width:70rem){.headlines>div:first-child{grid-column:1/-1}}
.headlines p{margin:.1rem 0 .6rem;font-size:.86rem}
.sentence{display:block;font-weight:400;font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
"Liberation Sans",Arial,sans-serif;font-size:.86rem;max-width:34rem}
.meaning{display:block;color:var(--soft)}
h4{font-size:1.08rem;margin:0;font-family:ui-monospace,SFMono-Regular,Menlo,"Liberation Mono",monospace;
overflow-wrap:anywhere}
figcaption{font-size:.86rem;color:var(--soft);margin-top:.3rem}
pre{overflow-x:auto;background:var(--card);padding:.6rem .8rem;font-size:.8rem}
@media (max-width:40rem){main{padding:1.2rem .9rem 3rem} h1{font-size:1.55rem}
dl.facts{grid-template-columns:1fr} dl.facts dd{margin-bottom:.35rem} section.check{padding:.8rem .8rem}
table.verdicts thead{display:none} table.verdicts tr{display:block;border-bottom:1px solid var(--axis);padding:.5rem 0}
table.verdicts th,table.verdicts td{display:block;border:0;padding:.12rem 0;text-align:left;white-space:normal}
table.verdicts td::before{content:attr(data-label);display:inline-block;min-width:5.6rem;color:var(--soft)}
table.verdicts .range{display:inline} table.grades{display:block;overflow-x:auto}}
@media print{:root{color-scheme:light;--page:#fff;--ink:#000;--soft:#444;--line:#bbb;--card:#f4f4f4;
--tint:#e3eef6;
--holds:#00639c;--violated:#b34a00;--unproven:#8a3470;--error:#24292f;--badge-ink:#fff;--axis:#777;
--threshold:#000}
body{font-size:10pt} main{max-width:none;padding:0} section.check
header,figure,svg.interval,tr{break-inside:avoid}
h2,section.check header{break-after:avoid} .scroll{overflow:visible} table{font-size:7.8pt}
.badge{font-size:6.8pt}
dl.facts{break-inside:avoid}
th,td{padding:.25rem .35rem}}
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src
'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>Guarantee report</h1>
<p class="$mood">$summary</p>
$first
<h2 id="reading">How to read a line</h2>
<p class="note">Every claim reads “statistic ≤ threshold”. <b>HOLDS</b>: the whole interval lies at or below
the
threshold. <b>VIOLATED</b>: the whole interval lies above it. <b>INCONCLUSIVE</b>: neither. Each check has a
<b>control</b>, the same test with one assumption broken, which must come out VIOLATED: it is then
<b>caught</b>; where it is not,
the test
cannot tell right from wrong and its claim is <b>UNPROVEN</b>. Nearly all checks have <b>graded controls</b>: the claim's own
pieces made again with one named term multiplied by less and less, until the claim is violated; a term that can be lost
unnoticed is listed with the reason, or its claim is UNPROVEN. <b>ERROR</b>: a piece of the work failed.
Intervals from
sampling are valid at their own confidence, under the assumptions listed; the report does not correct them
for the
number of checks. HOLDS is evidence for the code as it ran here, no proof of the theorem. Seconds are time
summed over
the worker processes, of the claim and its controls.</p>
$groups
<h2 id="origin">Where the numbers come from</h2>
<dl class="environment">$environment</dl>
</main>
</body>
</html>
""")
