// The report's own code; NiiVue stands above it in the same module and is at globalThis.Slice3dNiivue.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const canvas = byId("canvas");
const status = byId("status");
const CROSS = 8, RULER = 2, WINDOWING = 9; // NiiVue's drag modes
const ALL = 3, RENDER = 4; // NiiVue's slice types
const PLANES = [
  { name: "Axial", type: 0, axis: 2, ends: ["I", "S"] },
  { name: "Coronal", type: 1, axis: 1, ends: ["P", "A"] },
  { name: "Sagittal", type: 2, axis: 0, ends: ["L", "R"] },
];
const TURN = 10, LEAP = 10; // degrees and slices per key
const surfaces = new Map();
let nv = null;
let overlay = null;
let start = null; // mm
let told = null; // the last of the ruler's measurements that was put into words

function bytes(base64) {
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n++) out[n] = text.charCodeAt(n);
  return out.buffer;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function choices(parent, entries, pick, first) {
  const buttons = entries.map((entry, n) => {
    const button = element("button", { type: "button", textContent: entry.name });
    button.setAttribute("aria-pressed", String(n === first));
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      pick(entry);
    });
    return button;
  });
  parent.append(...buttons);
}

function millimetres(axis, value) {
  const [low, high] = PLANES.find((plane) => plane.axis === axis).ends;
  return `${value < 0 ? low : high} ${Math.abs(value).toFixed(1)} mm`;
}

function crossInMm() {
  return Array.from(nv.frac2mm(nv.scene.crosshairPos)).slice(0, 3);
}

function makeSliders() {
  const size = nv.volumes[0].dimsRAS;
  for (const plane of PLANES) {
    const slider = element("input", { type: "range", min: 0, max: size[plane.axis + 1] - 1, step: 1 });
    slider.id = `slice-${plane.name.toLowerCase()}`;
    const shown = element("output", { ariaLive: "off" });
    slider.addEventListener("input", () => {
      nv.scene.crosshairPos[plane.axis] = (Number(slider.value) + 0.5) / size[plane.axis + 1];
      nv.drawScene();
      moved();
    });
    plane.slider = slider;
    plane.shown = shown;
    byId("slices").append(element("label", { className: "slider" }, element("span", { textContent: plane.name }), slider, shown));
  }
}

function moved() {
  const at = crossInMm();
  const size = nv.volumes[0].dimsRAS;
  for (const { axis, slider, shown } of PLANES) {
    slider.value = String(Math.min(size[axis + 1] - 1, Math.floor(nv.scene.crosshairPos[axis] * size[axis + 1])));
    shown.textContent = millimetres(axis, at[axis]);
    slider.setAttribute("aria-valuetext", millimetres(axis, at[axis]));
  }
  const value = (volume) => {
    const voxel = volume.mm2vox(at);
    return volume.getValue(voxel[0], voxel[1], voxel[2], 0);
  };
  const unit = data.modality === "CT" ? " HU" : "";
  const inside = overlay ? data.names[Math.round(value(overlay))] : "";
  const places = [0, 1, 2].map((axis) => millimetres(axis, at[axis])).join(", ");
  byId("place").textContent = `${places}: ${Number(value(nv.volumes[0]).toPrecision(4))}${unit}${inside ? ", " + inside : ""}`;
}

function setWindow({ low, high }) {
  nv.volumes[0].cal_min = low;
  nv.volumes[0].cal_max = high;
  nv.updateGLVolume();
  showWindow();
}

function showWindow() {
  const { cal_min, cal_max } = nv.volumes[0];
  const unit = data.modality === "CT" ? " HU" : "";
  for (const [n, button] of [...byId("presets").children].entries()) {
    const { low, high } = data.presets[n];
    if (low !== cal_min || high !== cal_max) button.setAttribute("aria-pressed", "false");
  }
  for (const [name, value] of [["level", (cal_min + cal_max) / 2], ["width", cal_max - cal_min]]) {
    const text = `${Number(value.toPrecision(4))}${unit}`;
    byId(name).value = String(value);
    byId(name).setAttribute("aria-valuetext", text);
    byId(`${name}-out`).textContent = text;
  }
}

function makeWindow() {
  const span = data.window[1] - data.window[0];
  const [low, high, widest, step] =
    data.modality === "CT" ? [-1025, 3075, 4100, 5] : [data.window[0] - span, data.window[1] + span, 4 * span, span / 100];
  Object.assign(byId("level"), { min: low, max: high, step });
  Object.assign(byId("width"), { min: step, max: widest, step });
  const pick = () => {
    const [level, width] = ["level", "width"].map((name) => Number(byId(name).value));
    setWindow({ low: level - width / 2, high: level + width / 2 });
  };
  byId("level").addEventListener("input", pick);
  byId("width").addEventListener("input", pick);
  nv.onIntensityChange = showWindow;
  showWindow();
}

function makeZoom() {
  byId("zoom").addEventListener("input", (event) => {
    const zoom = Number(event.target.value);
    const pan = Array.from(nv.scene.pan2Dxyzmm);
    // The cross stays where it is on the screen; without magnification everything is where it was.
    crossInMm().forEach((mm, axis) => (pan[axis] = zoom === 1 ? 0 : pan[axis] + (pan[3] - zoom) * mm));
    pan[3] = zoom;
    nv.setPan2Dxyzmm(pan);
    byId("zoom-out").textContent = `${Math.round(zoom * 100)} %`;
    event.target.setAttribute("aria-valuetext", byId("zoom-out").textContent);
  });
}

function step({ axis, slider }, slices) {
  const last = Number(slider.max);
  const next = Math.min(last, Math.max(0, Number(slider.value) + slices));
  nv.scene.crosshairPos[axis] = (next + 0.5) / (last + 1);
  nv.drawScene();
  moved();
}

function makeKeys() {
  const arrows = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  // The viewer has keys of its own, which cut surfaces open and change views behind our buttons: they stay unheard.
  canvas.addEventListener("keyup", (event) => event.stopImmediatePropagation(), true);
  canvas.addEventListener("keydown", (event) => {
    event.stopImmediatePropagation();
    if (canvas.dataset.ready !== "yes" || event.ctrlKey || event.altKey || event.metaKey) return;
    const view = nv.opts.sliceType;
    const plane = PLANES.find((p) => p.type === view) ?? PLANES[0];
    const [right, up] = arrows[event.key] ?? [0, 0];
    if ((right && view === ALL) || ((right || up) && view === RENDER)) {
      nv.setRenderAzimuthElevation(nv.scene.renderAzimuth + TURN * right, nv.scene.renderElevation + TURN * up);
    } else if (right || up) {
      step(plane, right + up);
    } else if (event.key === "PageUp" || event.key === "PageDown") {
      step(plane, event.key === "PageUp" ? LEAP : -LEAP);
    } else if (event.key === "+" || event.key === "-") {
      nv.setScale(nv.scene.volScaleMultiplier * (event.key === "+" ? 1.1 : 1 / 1.1));
    } else return;
    event.preventDefault();
  }, true);
  // Where a screen reader stands on the picture, it is told the place after each key.
  canvas.addEventListener("focus", () => (byId("place").ariaLive = "polite"));
  canvas.addEventListener("blur", () => (byId("place").ariaLive = "off"));
}

function fillWithSurfaces() {
  const shown = data.structures.filter((s) => s.shown && surfaces.has(s.name)).map((s) => surfaces.get(s.name));
  if (!shown.length) return;
  const [low, high] = [["extentsMin", Math.min], ["extentsMax", Math.max]].map(([end, pick]) =>
    [0, 1, 2].map((axis) => pick(...shown.map((mesh) => mesh[end][axis]))));
  // The viewer turns about the middle of the whole scan and leaves room for it; this instance about the surfaces.
  nv.setPivot3D = () => {
    Object.getPrototypeOf(nv).setPivot3D.call(nv);
    nv.pivot3D = low.map((v, axis) => (v + high[axis]) / 2);
    nv.furthestFromPivot = Math.hypot(...low.map((v, axis) => high[axis] - v)) / 2;
  };
}

function shownOnes() {
  return new Set(data.structures.filter((s) => s.box.checked).map((s) => s.name));
}

function paintLabels() {
  if (!overlay) return;
  const count = Object.keys(data.names).length;
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
  for (let n = 1; n <= count; n++) {
    const owner = data.structures.find((s) => s.labels.includes(n));
    const on = owner && owner.box.checked;
    table.R.push(owner ? owner.color[0] : 0);
    table.G.push(owner ? owner.color[1] : 0);
    table.B.push(owner ? owner.color[2] : 0);
    table.A.push(on ? 255 : 0);
    table.I.push(n);
    table.labels.push("");
  }
  overlay.setColormapLabel(table);
}

function showStructures() {
  paintLabels();
  const shown = shownOnes();
  for (const [name, mesh] of surfaces) mesh.visible = shown.has(name);
  nv.updateGLVolume();
  nv.drawScene();
}

function makeStructures() {
  for (const structure of data.structures) {
    const box = element("input", { type: "checkbox", checked: structure.shown });
    box.dataset.structure = structure.name;
    box.addEventListener("change", showStructures);
    structure.box = box;
    const swatch = element("canvas", { width: 16, height: 16, className: "swatch" });
    const ink = swatch.getContext("2d");
    ink.fillStyle = `rgb(${structure.color.join(",")})`;
    ink.fillRect(0, 0, 16, 16);
    byId("structures").append(element("li", {}, element("label", {}, box, swatch, structure.title)));
  }
  const all = (on) => () => {
    for (const structure of data.structures) structure.box.checked = on;
    showStructures();
  };
  byId("all").addEventListener("click", all(true));
  byId("none").addEventListener("click", all(false));
}

function makeSlidersOfOpacity() {
  byId("overlay").addEventListener("input", (event) => {
    byId("overlay-out").textContent = `${event.target.value} %`;
    if (overlay) nv.setOpacity(1, event.target.value / 100);
  });
  byId("solid").addEventListener("input", (event) => {
    byId("solid-out").textContent = `${event.target.value} %`;
    for (const structure of data.structures) {
      const mesh = surfaces.get(structure.name);
      if (mesh) mesh.opacity = structure.opacity * (event.target.value / 100);
    }
    nv.drawScene();
  });
}

function makeMeasuring() {
  const ruler = byId("ruler");
  ruler.addEventListener("click", () => {
    const on = ruler.getAttribute("aria-pressed") !== "true";
    ruler.setAttribute("aria-pressed", String(on));
    nv.opts.dragModePrimary = on ? RULER : CROSS;
  });
  addEventListener("pointerup", () => setTimeout(() => {
    const made = nv.document.completedMeasurements;
    const last = made[made.length - 1];
    if (!last || last === told) return;
    if (last.distance === 0) {
      made.pop(); // a click is no distance
      nv.drawScene();
      return;
    }
    told = last;
    byId("distance").textContent = `Distance: ${last.distance.toFixed(1)} mm`;
  }));
  byId("clear").addEventListener("click", () => {
    nv.clearAllMeasurements();
    start = told = null;
    byId("distance").textContent = "Nothing measured.";
  });
  byId("from").addEventListener("click", () => {
    start = crossInMm();
    byId("distance").textContent = "Start marked. Move the cross and ask for the distance.";
  });
  byId("to").addEventListener("click", () => {
    if (!start) {
      byId("distance").textContent = "Mark a start first.";
      return;
    }
    const end = crossInMm();
    byId("distance").textContent = `Distance: ${Math.hypot(...end.map((v, n) => v - start[n])).toFixed(1)} mm`;
  });
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").setAttribute("aria-pressed", String(dark));
}

async function open() {
  nv = new globalThis.Slice3dNiivue({
    backColor: [0, 0, 0, 1], crosshairColor: [1, 0.85, 0.3, 0.8], crosshairWidth: 1, crosshairWidthUnit: "voxels",
    fontColor: [1, 0.88, 0.55, 1], isRadiologicalConvention: true, sagittalNoseLeft: true, isSliceMM: true,
    isOrientCube: true, multiplanarShowRender: 1, multiplanarLayout: 2, dragAndDropEnabled: false, showLegend: false, loadingText: "",
    logLevel: "error", dragMode: WINDOWING, dragModePrimary: CROSS, measureLineColor: [0.4, 0.9, 1, 1],
    measureTextColor: [0.4, 0.9, 1, 1], meshThicknessOn2D: 0, show3Dcrosshair: true, isAlphaClipDark: true,
  });
  makeKeys(); // before the viewer's own, so that they hear first
  await nv.attachToCanvas(canvas, true);
  // Nothing is computed or drawn until all is there: without a graphics card each time costs seconds.
  nv.drawScene = nv.updateGLVolume = () => {};
  const [low, high] = data.window;
  await nv.addVolumeFromUrl({ url: "image.nii.gz", name: "image.nii.gz", buffer: bytes(data.image), colormap: "gray", cal_min: low, cal_max: high });
  makeStructures();
  if (data.labels) {
    overlay = await nv.addVolumeFromUrl({ url: "labels.nii.gz", name: "labels.nii.gz", buffer: bytes(data.labels), opacity: 0.4 });
    paintLabels();
  }
  // Solid surfaces first: what is seen through another must already be there.
  for (const structure of [...data.structures].sort((a, b) => b.opacity - a.opacity)) {
    if (!structure.surface) continue;
    const mesh = await nv.addMeshFromUrl({
      url: "surface.mz3", name: "surface.mz3", buffer: bytes(structure.surface), rgba255: [...structure.color, 255], opacity: structure.opacity,
    });
    surfaces.set(structure.name, mesh);
  }
  fillWithSurfaces();
  delete nv.drawScene;
  delete nv.updateGLVolume;
  nv.updateGLVolume();
  // Surfaces are the result; the volume rendering behind them would only hide them (this instance, not the library).
  if (surfaces.size) nv.drawImage3D = () => {};
  nv.scene.crosshairPos = nv.mm2frac(data.start);
  showStructures();
  nv.setSliceType(ALL);
  nv.setRenderAzimuthElevation(160, 15);
  choices(byId("views"), [{ name: "All", type: ALL }, ...PLANES, { name: "3D", type: RENDER }], (view) => nv.setSliceType(view.type), 0);
  choices(byId("presets"), data.presets, setWindow, 0);
  makeWindow();
  makeSliders();
  makeZoom();
  makeSlidersOfOpacity();
  makeMeasuring();
  nv.onLocationChange = moved;
  moved();
  status.textContent = "";
  canvas.dataset.ready = "yes";
  globalThis.slice3dReport = { nv, data, surfaces };
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
open().catch((error) => {
  status.textContent = "This browser cannot draw the slices (WebGL 2 is needed). The picture and the numbers below are complete.";
  document.querySelector(".still").open = true;
  canvas.dataset.ready = "failed";
  canvas.dataset.reason = String(error);
});
