"""Style and script of the pages of ``jepa view`` and ``jepa similar``; both are embedded, nothing is loaded."""

STYLE = """
.row { display: flex; gap: 16px; padding: 14px 0; } .row:first-child { padding-top: 0; }
.row:last-child { padding-bottom: 0; } .asked { border-right: 2px solid var(--line); padding-right: 16px; }
.found { flex: 1; } .asked, .found { display: flex; flex-wrap: wrap; gap: 12px; align-content: flex-start; }
.row + .row { border-top: 1px solid var(--line); }
.thumb { width: 118px; font-size: 12px; line-height: 1.35; overflow-wrap: anywhere; }
.thumb img, .thumb .none { width: 100%; aspect-ratio: 4/3; object-fit: cover; border-radius: 7px;
  background: var(--bar); }
.thumb .none { display: grid; place-items: center; color: var(--soft); text-align: center; padding: 8px; }
.thumb b { font-variant-numeric: tabular-nums; } .thumb span { color: var(--soft); display: block; }
.note { border-left: 3px solid #c98a1b; padding: 2px 12px; margin: 10px 0; }
.player + .player { border-top: 1px solid var(--line); margin-top: 22px; padding-top: 18px; }
.player h3 { font-size: 15px; margin: 0 0 10px; overflow-wrap: anywhere; }
.screens { display: flex; flex-wrap: wrap; gap: 10px; }
.screens figure { width: calc((100% - 20px) / 3); min-width: 120px; }
.cell { width: 100%; background-repeat: no-repeat; border-radius: 7px; overflow: hidden; position: relative; }
.cell i { position: absolute; inset: 0; opacity: .6; background-repeat: no-repeat; }
.controls { display: flex; gap: 12px; align-items: center; margin: 10px 0; font-variant-numeric: tabular-nums; }
.controls input { flex: 1; max-width: 560px; accent-color: var(--trained); } .controls output { min-width: 150px; }
button { font: inherit; font-size: 14px; color: var(--ink); background: var(--bar); border: 1px solid var(--line);
  border-radius: 7px; padding: 3px 12px; cursor: pointer; } button[aria-pressed=true] { border-color: var(--trained);
  box-shadow: inset 0 0 0 1px var(--trained); }
.strip { overflow-x: auto; border-radius: 7px; } .strip img { max-width: none; height: 112px; cursor: pointer; }
.map { display: grid; grid-template-columns: minmax(0, 1fr) 290px; gap: 20px; }
@media (max-width: 800px) { .map { grid-template-columns: 1fr; } }
.map canvas { width: 100%; height: 520px; border-radius: 7px; background: var(--page);
  touch-action: none; cursor: grab; }
.tools, .legend { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 10px; align-items: center; }
.legend { margin: 10px 0 0; } .legend button { display: inline-flex; gap: 7px; align-items: center; background: none;
  font-size: 13px; padding: 1px 9px; } .legend i { width: 10px; height: 10px; border-radius: 50%; }
.legend button.off { opacity: .4; } #near .found { gap: 10px; } #near b { color: var(--ink); }
#near .thumb { width: 130px; } #near .thumb:first-child { outline: 2px solid var(--trained); outline-offset: 3px;
  border-radius: 7px; } #tip .thumb { width: 150px; }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--card); border: 1px solid var(--line);
  border-radius: 9px; padding: 8px; box-shadow: 0 4px 18px #0004; display: none; }
"""

PLAYERS = """
for (const player of document.querySelectorAll('.player')) {
  const strip = player.querySelector('.strip img'), bar = player.querySelector('input');
  const play = player.querySelector('button'), times = JSON.parse(player.dataset.times), n = times.length;
  const cells = player.querySelectorAll('[data-row]');
  for (const cell of cells) {
    cell.style.backgroundImage = `url(${strip.src})`;
    cell.style.backgroundSize = `${n * 100}% 200%`;
  }
  const show = i => {
    bar.value = i;
    player.querySelector('output').textContent = times[i];
    for (const cell of cells)
      cell.style.backgroundPosition = `${n > 1 ? 100 * i / (n - 1) : 0}% ${100 * cell.dataset.row}%`;
  };
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'Play'; };
  play.onclick = () => {
    if (timer) return stop();
    play.textContent = 'Pause';
    timer = setInterval(() => show((+bar.value + 1) % n), +player.dataset.pace);
  };
  bar.oninput = () => { stop(); show(+bar.value); };
  strip.onclick = event => { stop(); show(Math.min(n - 1, Math.floor(event.offsetX / strip.clientWidth * n))); };
  show(0);
  if (n > 1 && !matchMedia('(prefers-reduced-motion: reduce)').matches) play.click();
}
"""

SCATTER = """
const data = JSON.parse(document.getElementById('clips').textContent);
const canvas = document.getElementById('scatter'), tip = document.getElementById('tip');
const near = document.getElementById('near'), brush = canvas.getContext('2d'), hidden = new Set();
let places = Object.values(data.places)[0], zoom = 1, shift = [0, 0], picked = -1, hovered = -1, drag = null;

function card(i, score) {
  const clip = data.clips[i], figure = document.createElement('figure');
  figure.className = 'thumb';
  const picture = document.createElement(clip.uri ? 'img' : 'div');
  if (clip.uri) { picture.src = clip.uri; picture.alt = clip.source; }
  else { picture.className = 'none'; picture.textContent = 'file not readable'; }
  const words = document.createElement('div');
  if (score !== undefined) words.append(Object.assign(document.createElement('b'), {textContent: score.toFixed(3)}));
  for (const line of [clip.source, clip.time, data.groups[clip.group].name])
    if (line) words.append(Object.assign(document.createElement('span'), {textContent: line}));
  figure.append(picture, words);
  return figure;
}
function place(i) {
  const w = canvas.clientWidth, h = canvas.clientHeight, pad = 24;
  return [w / 2 + ((places[i][0] - .5) * (w - 2 * pad)) * zoom + shift[0],
          h / 2 - ((places[i][1] - .5) * (h - 2 * pad)) * zoom + shift[1]];
}
function draw() {
  const w = canvas.clientWidth, h = canvas.clientHeight, ratio = devicePixelRatio || 1;
  canvas.width = w * ratio; canvas.height = h * ratio;
  brush.setTransform(ratio, 0, 0, ratio, 0, 0);
  const size = Math.max(2.6, Math.min(6, 60 / Math.sqrt(data.clips.length))) * Math.min(2, Math.sqrt(zoom));
  const dot = (i, radius, alpha) => {
    const [x, y] = place(i);
    brush.globalAlpha = alpha;
    brush.fillStyle = data.groups[data.clips[i].group].colour;
    brush.beginPath(); brush.arc(x, y, radius, 0, 7); brush.fill();
  };
  const linked = picked < 0 ? null : new Set([picked, ...data.near[picked].map(pair => pair[0])]);
  data.clips.forEach((clip, i) => { if (!hidden.has(clip.group)) dot(i, size, linked && !linked.has(i) ? .3 : .85); });
  brush.strokeStyle = getComputedStyle(canvas).color; brush.lineWidth = 1.5;
  for (const i of [hovered, picked]) if (i >= 0) {
    dot(i, size + 2, 1);
    brush.stroke();
  }
  if (picked >= 0) for (const [i] of data.near[picked]) {
    brush.globalAlpha = .5; brush.beginPath();
    brush.moveTo(...place(picked)); brush.lineTo(...place(i)); brush.stroke();
    dot(i, size + 1, 1);
  }
}
function closest(event) {
  const box = canvas.getBoundingClientRect(), at = [event.clientX - box.left, event.clientY - box.top];
  let best = -1, least = 14 * 14;
  data.clips.forEach((clip, i) => {
    if (hidden.has(clip.group)) return;
    const [x, y] = place(i), far = (x - at[0]) ** 2 + (y - at[1]) ** 2;
    if (far < least) { least = far; best = i; }
  });
  return best;
}
function pick(i) {
  picked = i;
  near.replaceChildren();
  if (i >= 0) {
    const row = document.createElement('div');
    row.className = 'found';
    row.append(card(i), ...data.near[i].map(([other, score]) => card(other, score)));
    near.append(row);
  } else near.textContent = near.dataset.hint;
  draw();
}
canvas.onpointermove = event => {
  if (drag) {
    shift = [drag.shift[0] + event.clientX - drag.at[0], drag.shift[1] + event.clientY - drag.at[1]];
    drag.moved ||= Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) > 4;
    tip.style.display = 'none';
    return draw();
  }
  const i = closest(event);
  if (i !== hovered) { hovered = i; if (i >= 0) tip.replaceChildren(card(i)); draw(); }
  tip.style.display = i < 0 ? 'none' : 'block';
  tip.style.left = Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8) + 'px';
  tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + 'px';
};
canvas.onpointerleave = () => { hovered = -1; tip.style.display = 'none'; draw(); };
canvas.onpointerdown = event => {
  drag = {at: [event.clientX, event.clientY], shift};
  canvas.setPointerCapture(event.pointerId);
};
canvas.onpointerup = event => { const moved = drag && drag.moved; drag = null; if (!moved) pick(closest(event)); };
const enlarge = factor => {
  zoom = Math.max(1, zoom * factor);
  shift = zoom === 1 ? [0, 0] : shift.map(s => s * factor);
  draw();
};
document.getElementById('in').onclick = () => enlarge(1.5);
document.getElementById('out').onclick = () => enlarge(1 / 1.5);
document.getElementById('whole').onclick = () => { zoom = 1; enlarge(1); };
for (const button of document.querySelectorAll('[data-places]')) button.onclick = () => {
  for (const other of document.querySelectorAll('[data-places]')) other.setAttribute('aria-pressed', other === button);
  places = data.places[button.dataset.places];
  draw();
};
for (const button of document.querySelectorAll('.legend button')) button.onclick = () => {
  const group = +button.dataset.group;
  hidden.has(group) ? hidden.delete(group) : hidden.add(group);
  button.classList.toggle('off', hidden.has(group));
  draw();
};
addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
pick(-1);
"""
