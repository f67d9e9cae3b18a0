"use strict";
(() => {
  for (const kind of ["beforeprint", "afterprint"])
    addEventListener(kind, () => document.querySelectorAll("details.printed").forEach((d) => { d.open = kind === "beforeprint"; }));
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  document.documentElement.classList.add("js");
  viewer.hidden = false;

  const LARGEST = 16, LOWEST = 56;
  const divider = document.getElementById("divider"), lines = document.getElementById("lines");
  const state = { mode: "compare", scale: 1, centre: { x: 0, y: 0, z: 0 } };
  const make = (tag, kind, parent) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (parent) parent.append(made);
    return made;
  };
  const within = (value, low, high) => Math.min(Math.max(value, low), high);

  const panes = [...document.querySelectorAll(".plate")].map((plate) => {
    const rows = [...plate.querySelectorAll(".row")].sort((a, b) => a.dataset.place - b.dataset.place);
    const images = rows.map((row) =>
      Object.fromEntries([...row.querySelectorAll("img")].map((img) => [img.dataset.kind, img.src])));
    const figure = make("figure", "pane " + plate.dataset.plate, viewer.querySelector(".panes"));
    const caption = make("figcaption", "", figure);
    make("b", "", caption).textContent = plate.dataset.title;
    const label = make("span", "", caption);
    const stage = make("div", "stage", figure);
    stage.tabIndex = 0;
    stage.setAttribute("role", "group");
    stage.setAttribute("aria-label", plate.dataset.title + "; arrow keys move, plus and minus zoom");
    const pane = {
      stage, label, images, rows, name: plate.dataset.plate, shown: Math.floor(rows.length / 2),
      right: plate.dataset.axes[0], down: plate.dataset.axes[1],
      first: { right: +plate.dataset.right, down: +plate.dataset.down },
      size: { right: +plate.dataset.width, down: +plate.dataset.height },
      under: make("img", "", stage), left: make("div", "left", stage),
      across: make("div", "across", stage), vertical: make("div", "down", stage),
      handle: make("div", "handle", stage), leftTag: make("span", "tag of-left", stage), rightTag: make("span", "tag of-right", stage),
    };
    pane.over = make("img", "", pane.left);
    if (rows.length > 1) {
      const range = make("input", "", make("label", "places", figure));
      Object.assign(range, { type: "range", min: 0, max: rows.length - 1, step: 1, value: pane.shown });
      range.setAttribute("aria-label", plate.dataset.title + ": place");
      range.addEventListener("input", () => { pane.shown = +range.value; fill(pane); draw(); });
      pane.range = range;
    }
    return pane;
  });
  const axial = panes.find((p) => p.name === "axial");
  const across = Object.fromEntries(panes.map((p) => [p.name, p]));
  const home = () => {
    const deep = across.coronal || axial;
    state.scale = 1;
    state.centre = { x: axial.size.right / 2, y: axial.size.down / 2, z: deep.size.down / 2 };
  };
  const names = { before: "before", after: "after", residual: "taken away", other: "other split" };

  function fill(pane) {
    const images = pane.images[pane.shown], compare = state.mode === "compare";
    const title = pane.rows[pane.shown].dataset.label;
    pane.under.src = compare ? images.after : images[state.mode];
    pane.under.alt = title + ": " + (compare ? "after" : names[state.mode]);
    pane.over.src = images.before;
    pane.over.alt = title + ": before";
    pane.left.hidden = pane.handle.hidden = pane.rightTag.hidden = !compare;
    pane.leftTag.textContent = compare ? "before" : names[state.mode];
    pane.rightTag.textContent = "after";
    pane.label.textContent = title;
    if (pane.range) pane.range.setAttribute("aria-valuetext", title);
  }

  /* Where voxel v of the region is along one side of a stage, in CSS pixels from its first edge. */
  function placed(length, extent, scale, centre, first) {
    const whole = extent * scale;
    return whole <= length ? (length - whole) / 2 : within(length / 2 - (centre - first) * scale, length - whole, 0);
  }

  function draw() {
    const fraction = +divider.value;
    for (const pane of panes) {
      const width = pane.stage.clientWidth, tallest = 0.85 * innerHeight;
      const base = Math.min(width / pane.size.right, tallest / pane.size.down);
      const height = Math.max(LOWEST, pane.size.down * base), scale = base * state.scale;
      pane.stage.style.height = height + "px";
      const x = placed(width, pane.size.right, scale, state.centre[pane.right], pane.first.right);
      const y = placed(height, pane.size.down, scale, state.centre[pane.down], pane.first.down);
      for (const img of [pane.under, pane.over]) {
        Object.assign(img.style, { left: x + "px", top: y + "px", width: pane.size.right * scale + "px", height: pane.size.down * scale + "px" });
        img.classList.toggle("large", img.naturalWidth > 0 && pane.size.right * scale > 1.5 * img.naturalWidth);
      }
      pane.drawn = { x, y, scale };
      pane.left.style.clipPath = "inset(0 " + (100 - fraction) + "% 0 0)";
      pane.handle.style.left = fraction + "%";
      pane.stage.classList.toggle("moved", state.scale > 1);
      pane.stage.classList.toggle("low", height < 90);
      const at = { x: across.sagittal, y: across.coronal, z: axial };
      for (const [line, axis, side, from, start] of [
        [pane.across, pane.down, "top", y, pane.first.down], [pane.vertical, pane.right, "left", x, pane.first.right]]) {
        const other = at[axis];
        line.hidden = !lines.checked || !other;
        if (other) line.style[side] = from + (+other.rows[other.shown].dataset.place + 0.5 - start) * scale + "px";
      }
    }
    document.getElementById("scale").textContent = Math.round(10 * state.scale) / 10 + "×";
  }

  /* Zoom so that what is under (left, top) of a stage stays there. */
  function zoom(factor, pane, left, top) {
    const scale = within(state.scale * factor, 1, LARGEST);
    if (pane) {
      const ratio = scale / state.scale, { x, y, scale: now } = pane.drawn;
      for (const [axis, place, from, length, first] of [
        [pane.right, left, x, pane.stage.clientWidth, pane.first.right], [pane.down, top, y, pane.stage.clientHeight, pane.first.down]])
        state.centre[axis] = first + (place - from) / now + (length / 2 - place) / (now * ratio);
    }
    state.scale = scale;
    if (scale === 1) home();
    keep();
    draw();
  }

  function keep() {
    const deep = across.coronal || axial;
    state.centre.x = within(state.centre.x, 0, axial.size.right);
    state.centre.y = within(state.centre.y, 0, axial.size.down);
    state.centre.z = within(state.centre.z, 0, deep.size.down);
  }

  function move(pane, right, down) {
    state.centre[pane.right] -= right / pane.drawn.scale;
    state.centre[pane.down] -= down / pane.drawn.scale;
    keep();
    draw();
  }

  for (const pane of panes) {
    const { stage } = pane, fingers = new Map();
    let dragged = 0, dividing = false, apart = 0;
    const here = (event) => {
      const box = stage.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const divide = (x) => { divider.value = 100 * x / stage.clientWidth; draw(); };
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      stage.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, here(event));
      const near = Math.abs(here(event).x - divider.value / 100 * stage.clientWidth) < 16;
      dividing = state.mode === "compare" && (near || state.scale === 1);
      dragged = fingers.size > 1 ? Infinity : 0;
      apart = 0;
    });
    stage.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId), now = here(event);
      if (!before) return;
      fingers.set(event.pointerId, now);
      if (fingers.size === 2) {
        const [a, b] = fingers.values(), distance = Math.hypot(a.x - b.x, a.y - b.y);
        if (apart) zoom(distance / apart, pane, (a.x + b.x) / 2, (a.y + b.y) / 2);
        apart = distance;
        return;
      }
      dragged += Math.hypot(now.x - before.x, now.y - before.y);
      if (dragged < 4) return;
      if (dividing) divide(now.x);
      else if (state.scale > 1) move(pane, now.x - before.x, now.y - before.y);
    });
    for (const kind of ["pointerup", "pointercancel"])
      stage.addEventListener(kind, (event) => {
        if (!fingers.delete(event.pointerId) || kind === "pointercancel" || dragged >= 4 || fingers.size) return;
        const { x, y } = here(event);
        zoom(event.shiftKey ? 0.5 : state.scale < LARGEST ? 2 : 1 / LARGEST, pane, x, y);
      });
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const { x, y } = here(event);
      zoom(Math.exp(-within(event.deltaY, -100, 100) / 200), pane, x, y);
    }, { passive: false });
    stage.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (steps && state.scale > 1) move(pane, 40 * steps[0], 40 * steps[1]);
      else if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-") zoom(1 / 1.5);
      else return;
      event.preventDefault();
    });
    for (const img of [pane.under, pane.over]) img.addEventListener("load", draw);
  }
  divider.addEventListener("input", draw);
  lines.addEventListener("change", draw);
  addEventListener("resize", draw);
  viewer.querySelectorAll("[name=mode]").forEach((choice) => choice.addEventListener("change", () => {
    state.mode = viewer.querySelector("[name=mode]:checked").value;
    divider.disabled = state.mode !== "compare";
    panes.forEach(fill);
    draw();
  }));
  viewer.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () =>
    zoom({ in: 2, out: 0.5, reset: 1 / LARGEST }[button.dataset.zoom])));
  viewer.querySelector("[name=mode][value=compare]").checked = true;
  divider.value = 50;
  home();
  panes.forEach(fill);
  draw();
})();
