"""Style and script of the page of ``jepa play``; both are embedded, nothing is loaded from elsewhere."""

STYLE = """
.worlds { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px; }
.worlds img { width: 100%; aspect-ratio: 1; background: var(--bar); object-fit: contain; }
.worlds figcaption b { color: var(--ink); font-weight: 600; } #dream { outline: 2px solid var(--trained);
  outline-offset: 2px; } .blind #real, .blind #decoded { filter: brightness(0) opacity(.25); }
.reached #real { outline: 2px solid var(--good); outline-offset: 2px; } #real-words { color: var(--good); }
#dream-words, .counts b { font-variant-numeric: tabular-nums; } .worlds figcaption span { display: block;
  min-height: 1.55em; } main { padding-top: 26px; } .counts { margin: 6px 0 0; } .counts div { display: flex; gap: 8px;
  padding: 4px 14px; align-items: baseline; } .counts b { font-size: 16px; min-width: 34px; text-align: right; }
button { font: inherit; font-size: 14px; color: var(--ink); background: var(--bar); border: 1px solid var(--line);
  border-radius: 8px; padding: 6px 12px; cursor: pointer; touch-action: none; user-select: none; }
button.down { border-color: var(--trained); box-shadow: inset 0 0 0 1px var(--trained); }
kbd { font: 11.5px ui-monospace, monospace; color: var(--soft); border: 1px solid var(--line); border-radius: 4px;
  padding: 0 4px; }
.steer { display: flex; flex-wrap: wrap; gap: 18px 34px; align-items: flex-start; }
.pad { display: grid; grid-template-columns: repeat(3, 62px); grid-auto-rows: 46px; gap: 6px; }
.pad [data-press=up] { grid-area: 1 / 2; } .pad [data-press=left] { grid-area: 2 / 1; }
.pad [data-press=down] { grid-area: 2 / 2; } .pad [data-press=right] { grid-area: 2 / 3; }
.pad button { padding: 0; font-size: 17px; }
.keys { display: flex; flex-wrap: wrap; gap: 6px; max-width: 420px; } .keys button { min-width: 46px; height: 46px; }
.side { flex: 1; min-width: 280px; display: grid; gap: 8px; font-size: 14px; } .moves, .boxes { display: flex;
  flex-wrap: wrap; gap: 6px 18px; } .moves { gap: 8px; } .slider { display: flex; gap: 10px; align-items: center; }
.slider input { width: 170px; accent-color: var(--trained); } .slider output { min-width: 30px; text-align: right;
  font-variant-numeric: tabular-nums; }
#curve { width: 100%; height: 170px; display: block; color: var(--soft); }
#error { border-left: 3px solid var(--wrong); padding: 4px 12px; margin: 12px 0; background: var(--card); }
"""

SCRIPT = """
const byId = id => document.getElementById(id), settings = JSON.parse(byId('settings').textContent);
const control = {}, held = new Map(), tapped = new Set(), times = [], SHOWN = 150;
for (const one of settings.controls) for (const key of one.keys) control[key] = one.name;
const buttons = document.querySelectorAll('[data-press]');
let curve = [], seed = 0, waiting = Promise.resolve();

// ---- the server: one request at a time, in the order of asking ----
function ask(path, body) {
  const answer = waiting.then(async () => {
    const reply = await fetch(path, body === undefined ? {} : {
      method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    return found;
  });
  waiting = answer.catch(() => {});
  return answer;
}
function complain(error) {
  release();
  if (byId('run')) byId('run').checked = false;
  byId('error').textContent = error instanceof TypeError
    ? 'The server does not answer: has it ended? (Start jepa play again, and reload this page.)' : error.message;
  byId('error').hidden = false;
}

// ---- what is seen ----
function show(moment) {
  for (const [name, picture] of Object.entries(moment.pictures)) if (picture) byId(name).src = picture;
  if ('goal' in moment.pictures) byId('goal-figure').hidden = !moment.pictures.goal;
  seed = moment.seed;
  for (const name of ['step', 'dreamt', 'seed']) byId(name + '-fact').textContent = moment[name];
  const point = moment.measured;
  byId('dream-words').textContent = point ? 'surprise ' + point.surprise.toPrecision(3) : '';
  byId('real-words').textContent = moment.over ? 'the episode is over' : moment.success ? 'goal reached' : '';
  document.body.classList.toggle('reached', moment.success);
  byId('error').hidden = true;
  if (moment.curve) curve = moment.curve;
  else if (moment.step === 0) curve = [];
  else if (point) curve = [...curve.slice(-SHOWN), point];
  draw();
}
function draw() {
  const canvas = byId('curve');
  if (!canvas) return;
  const ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight, pad = 40;
  const brush = canvas.getContext('2d');
  canvas.width = w * ratio; canvas.height = h * ratio;
  brush.setTransform(ratio, 0, 0, ratio, 0, 0);
  const style = getComputedStyle(canvas), colour = name => style.getPropertyValue(name), points = curve.slice(-SHOWN);
  const first = points.length ? points[0].step : 1, last = Math.max(first + 20, curve.length ? curve.at(-1).step : 1);
  const top = 1.1 * Math.max(1e-6, ...points.map(p => Math.max(p.surprise, p.still)));
  const x = step => pad + (w - pad - 8) * (step - first) / (last - first);
  const y = value => 8 + (h - 30) * (1 - value / top);
  brush.font = '12px system-ui, sans-serif'; brush.fillStyle = brush.strokeStyle = style.color; brush.lineWidth = 1;
  brush.textAlign = 'right';
  for (const share of points.length ? [0, .5, 1] : [0]) {
    const value = share * top / 1.1;
    brush.globalAlpha = .25;
    brush.beginPath(); brush.moveTo(pad, y(value)); brush.lineTo(w - 8, y(value)); brush.stroke();
    brush.globalAlpha = 1; brush.fillText(value.toPrecision(2), pad - 6, y(value) + 4);
  }
  brush.fillText('step ' + last, w - 8, h - 6);
  brush.textAlign = 'left'; brush.fillText(first, pad, h - 6);
  brush.globalAlpha = .5;
  for (const p of points) if (p.dreamt === 1 && p.step > first) {
    brush.beginPath(); brush.moveTo(x(p.step - .5), 8); brush.lineTo(x(p.step - .5), h - 22); brush.stroke();
  }
  brush.globalAlpha = 1; brush.lineWidth = 2; brush.lineJoin = 'round';
  for (const [name, stroke] of [['still', '--random'], ['surprise', '--trained']]) {
    brush.strokeStyle = brush.fillStyle = colour(stroke); brush.beginPath();
    for (const p of points) brush[p.dreamt === 1 ? 'moveTo' : 'lineTo'](x(p.step), y(p[name]));
    brush.stroke();
    const end = points.at(-1);
    if (end) { brush.beginPath(); brush.arc(x(end.step), y(end[name]), 3, 0, 7); brush.fill(); }
  }
}

// ---- what is pressed: by key or by pointer, each held until it is let go ----
function light() {
  const down = new Set(held.values());
  for (const button of buttons) button.classList.toggle('down', down.has(button.dataset.press));
}
function press(source, name) { held.delete(source); held.set(source, name); tapped.add(name); light(); }
function release(source) { source === undefined ? (held.clear(), tapped.clear()) : held.delete(source); light(); }
addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inside = event.target.closest && event.target.closest('button, input');
  if (event.code in control) { if (!event.repeat) press(event.code, control[event.code]); }
  else if (event.code === 'Space' && settings.idle && !inside) { if (!event.repeat) press('Space', ''); }
  else if (event.code === 'Enter' && settings.realMoves && !inside) { if (!event.repeat) move('wake'); }
  else if (event.code === 'Backspace') { if (!event.repeat) move('reset'); }
  else if (event.code === 'KeyN') { if (!event.repeat) move('next'); }
  else return;
  event.preventDefault();
});
addEventListener('keyup', event => release(event.code));
addEventListener('blur', () => release());
for (const button of buttons) {
  const down = event => { press(button, button.dataset.press); event.preventDefault(); };
  button.onpointerdown = event => { button.setPointerCapture(event.pointerId); down(event); };
  button.onpointerup = button.onpointercancel = () => release(button);
  button.onkeydown = event => { if ([' ', 'Enter'].includes(event.key) && !event.repeat) down(event); };
  button.onkeyup = button.onblur = () => release(button);
}
for (const button of document.querySelectorAll('[data-move]')) button.onclick = event => {
  if (event.detail) button.blur();  // it was clicked: the keys are the game's again
  move(button.dataset.move);
};
for (const slider of document.querySelectorAll('.slider input')) slider.oninput = () => {
  slider.nextElementSibling.value = slider.value;
};
if (byId('blind')) byId('blind').onchange = event => document.body.classList.toggle('blind', event.target.checked);

// ---- time ----
function move(what) {
  ask(what === 'next' ? '/reset' : '/' + what, what === 'next' ? {seed: seed + 1} : {}).then(show, complain);
}
function wanted() {
  const down = [...held.values()], names = [...new Set([...[...tapped].filter(name => !down.includes(name)), ...down])];
  tapped.clear();
  return names.length || (byId('run') && byId('run').checked) ? names.filter(name => name) : null;
}
async function tick() {
  const began = performance.now(), pressed = wanted();
  if (pressed) {
    const strength = byId('strength') ? byId('strength').value / 100 : 1;
    try {
      show(await ask('/step', {pressed, strength}));
      const now = performance.now();
      if (times.length && now - times.at(-1) > 1000) times.length = 0;  // there was a pause
      times.push(now);
      if (times.length > 30) times.shift();
      const rate = times.length > 1 ? 1000 * (times.length - 1) / (now - times[0]) : 0;
      byId('fps-fact').textContent = rate ? rate.toFixed(1) : '...';
    } catch (error) { complain(error); }
  }
  setTimeout(tick, Math.max(pressed ? 0 : 15, 1000 / byId('speed').value - (performance.now() - began) * !!pressed));
}
addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
ask('/state').then(show, complain).then(tick);
"""
