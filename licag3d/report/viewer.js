// SPDX-License-Identifier: Apache-2.0
// The live part of report.html: layer switches, theme, and the 3D tree. World is LPS in mm, z (to the head) is up.
(function () {
  "use strict";
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  root.classList.add("js");

  byId("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  for (const button of all("[data-layer]")) {
    button.addEventListener("click", () => {
      const hidden = byId("views").classList.toggle("hide-" + button.dataset.layer);
      button.setAttribute("aria-pressed", String(!hidden));
    });
  }

  const scene3d = JSON.parse(byId("scene").textContent);
  let turnTo = null; // (primary, secondary, positions of branches): set once there is a 3D tree
  try {
    show(scene3d);
  } catch (error) {
    root.classList.add("nogl");
    root.dataset.viewer = "unavailable: " + error.message;
  }
  if (scene3d.guide) guideViews(scene3d.guide);

  // Views to consider: the map of another vessel, and turning the 3D tree to an angulation.
  function guideViews(guide) {
    const color = ramp(guide.colors);
    const cells = all("#guide-cells rect"), buttons = all("button[data-look]");
    const choice = byId("guide-choice"), said = byId("guide-said"), usual = said.textContent;
    const costs = guide.targets.map((target) => decode(target.cost, Uint8Array));
    const spot = (primary, secondary) => cells.findIndex((cell) => cell.dataset.look === primary + "," + secondary);
    const angulation = (primary, secondary) => (primary === 0 ? "AP" : (primary > 0 ? "LAO " : "RAO ") + Math.abs(primary) + "\u00b0")
      + (secondary === 0 ? "" : (secondary > 0 ? ", CRA " : ", CAU ") + Math.abs(secondary) + "\u00b0");
    const looked = (node) => node.dataset.look.split(",").map(Number);

    function chooseMap(k) {
      choice.value = String(k);
      cells.forEach((cell, i) => cell.setAttribute("fill", "rgb(" + color(costs[k][i] / guide.worst_percent).map((v) => Math.round(255 * v)).join(",") + ")"));
      byId("guide-map").setAttribute("aria-label", "Foreshortening and overlap over the angulations: " + guide.targets[k].name);
      byId("guide-best").replaceChildren(...guide.targets[k].best.map(([primary, secondary]) => {
        const cell = cells[spot(primary, secondary)], ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
        ring.setAttribute("cx", Number(cell.getAttribute("x")) + cell.getAttribute("width") / 2);
        ring.setAttribute("cy", Number(cell.getAttribute("y")) + cell.getAttribute("height") / 2);
        ring.setAttribute("r", 6);
        return ring;
      }));
    }

    choice.addEventListener("change", () => chooseMap(Number(choice.value)));
    byId("guide-cells").addEventListener("mouseover", (event) => {
      const i = cells.indexOf(event.target);
      if (i >= 0) said.textContent = angulation(...looked(event.target)) + ": " + costs[choice.value][i] + " % foreshortened or covered.";
    });
    byId("guide-cells").addEventListener("mouseleave", () => { said.textContent = usual; });
    if (!turnTo) return;
    byId("guide-cells").addEventListener("click", (event) => {
      if (cells.includes(event.target)) turnTo(...looked(event.target), guide.targets[choice.value].positions);
    });
    for (const button of buttons) {
      button.disabled = false;
      button.addEventListener("click", () => {
        const k = Number(button.dataset.target);
        chooseMap(k);
        turnTo(...looked(button), guide.targets[k].positions);
        button.setAttribute("aria-pressed", "true");
        byId("stage").scrollIntoView({ block: "center", behavior: "smooth" });
      });
    }
  }

  function decode(text, Type) {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Type(bytes.buffer);
  }

  // Piecewise linear colour maps, readable with impaired colour vision. Stops are sRGB.
  function ramp(stops) {
    return (t) => {
      const x = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
      const i = Math.min(Math.floor(x), stops.length - 2);
      return stops[i].map((v, k) => (v + (stops[i + 1][k] - v) * (x - i)) / 255);
    };
  }

  function show(data) {
    const maps = {
      radius: { stops: [[94, 60, 190], [70, 130, 220], [64, 190, 190], [140, 215, 110], [250, 220, 70], [255, 150, 60]], name: "radius, mm", span: data.radius_span_mm },
      confidence: { stops: [[230, 90, 40], [240, 190, 110], [225, 230, 235], [110, 190, 225], [40, 120, 210]], name: "confidence", span: [0, 1] },
      error: { stops: [[40, 120, 210], [110, 190, 225], [225, 230, 235], [240, 190, 110], [230, 90, 40]], name: "expected error, mm", span: data.error_span_mm },
    };
    for (const map of Object.values(maps)) map.at = ramp(map.stops);
    const branchColors = [[228, 88, 86], [86, 156, 228], [110, 200, 110], [245, 170, 70], [185, 130, 220], [90, 205, 205], [240, 140, 190], [200, 200, 90]];
    const values = {
      radius: decode(data.radius, Uint8Array),
      confidence: data.confidence ? decode(data.confidence, Uint8Array) : null,
      error: data.error ? decode(data.error, Uint8Array) : null,
      branch: decode(data.branch, Uint16Array),
    };
    const packed = decode(data.positions, Uint16Array);
    const positions = new Float32Array(packed.length);
    for (let i = 0; i < packed.length; i++) positions[i] = data.low_mm[i % 3] + (packed[i] / 65535) * data.size_mm[i % 3];
    const index = decode(data.index, data.index_bytes === 2 ? Uint16Array : Uint32Array);
    const center = new THREE.Vector3(...data.low_mm.map((v, k) => v + data.size_mm[k] / 2));
    const reach = Math.max(Math.hypot(...data.size_mm) / 2, 1);

    const stage = byId("stage");
    const canvas = byId("canvas");
    const xray = byId("xray");
    const renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true, preserveDrawingBuffer: true });
    renderer.setClearColor(0x000000, 0);
    renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
    const world = new THREE.Scene();
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(positions, 3));
    geometry.setIndex(new THREE.BufferAttribute(index, 1));
    geometry.computeVertexNormals();
    const colors = new Float32Array(positions.length);
    geometry.setAttribute("color", new THREE.BufferAttribute(colors, 3));
    const material = new THREE.MeshPhongMaterial({ vertexColors: true, side: THREE.DoubleSide, shininess: 28, specular: 0x333333 });
    const mesh = new THREE.Mesh(geometry, material);
    mesh.frustumCulled = false;
    world.add(mesh);
    const lines = data.lines.map((text) => {
      const lineGeometry = new THREE.BufferGeometry();
      lineGeometry.setAttribute("position", new THREE.BufferAttribute(decode(text, Float32Array), 3));
      const line = new THREE.Line(lineGeometry, new THREE.LineBasicMaterial({ color: 0xffffff, depthTest: false, transparent: true }));
      line.visible = false;
      line.frustumCulled = false;
      line.renderOrder = 1;
      world.add(line);
      return line;
    });
    const camera = new THREE.OrthographicCamera(-1, 1, 1, -1, 1, 20 * reach);
    camera.up.set(0, 0, 1);
    const lamp = new THREE.DirectionalLight(0xffffff, 2.2);
    lamp.position.set(-0.5, 0.8, 1);
    camera.add(lamp, new THREE.AmbientLight(0xffffff, 0.9));
    world.add(camera);
    const controls = new THREE.OrbitControls(camera, canvas);
    controls.enableDamping = false;
    controls.target.copy(center);

    let coloring = "radius";
    let selected = []; // positions of the highlighted branches, none for all
    let view = -1; // index of the X-ray view shown exactly, or -1 for free turning
    let queued = false;

    function paint() {
      const map = maps[coloring];
      for (let i = 0; i < values.branch.length; i++) {
        let color = map ? map.at(values[coloring][i] / 255) : branchColors[values.branch[i] % branchColors.length].map((v) => v / 255);
        if (selected.length && !selected.includes(values.branch[i])) color = color.map((v) => 0.22 * v + 0.09);
        for (let k = 0; k < 3; k++) colors[3 * i + k] = Math.pow(color[k], 2.2); // the renderer works in linear light
      }
      geometry.attributes.color.needsUpdate = true;
      const legend = byId("legend");
      legend.replaceChildren();
      if (map && values.branch.length) {
        const bar = document.createElement("i");
        bar.style.background = "linear-gradient(90deg," + map.stops.map((c) => "rgb(" + c.join(",") + ")").join(",") + ")";
        const ends = document.createElement("span");
        for (const end of map.span) ends.appendChild(document.createElement("b")).textContent = end.toFixed(end === Math.round(end) ? 0 : 2);
        legend.append(map.name, bar, ends);
      }
      for (const button of all("[data-color]")) button.setAttribute("aria-pressed", String(button.dataset.color === coloring));
      for (const button of all("[data-branch]")) button.setAttribute("aria-pressed", String(selected.includes(Number(button.dataset.branch))));
      redraw();
    }

    // Free turning is orthographic: lengths across the screen are true everywhere.
    function placeFree() {
      const aspect = stage.clientWidth / Math.max(stage.clientHeight, 1);
      const half = reach * 1.04 / Math.min(1, aspect);
      camera.left = -half * aspect; camera.right = half * aspect; camera.top = half; camera.bottom = -half;
      camera.updateProjectionMatrix();
    }

    function fieldRect(k) { // where the image of view k lies on the stage, css px
      const [cols, rows] = data.views[k].size_px;
      const size = Math.min(stage.clientWidth / cols, stage.clientHeight / rows);
      return { x: (stage.clientWidth - cols * size) / 2, y: (stage.clientHeight - rows * size) / 2, size, cols, rows };
    }

    // The exact projection of an X-ray view. The image is seen from the detector, but its rays meet in the source behind
    // the patient: with depth w = (X - source) . beam, clip = (ax w + bx (X - source) . column, ..., w), and what has the
    // larger w is nearer to the viewer and covers the rest.
    function placeExact(k) {
      const v = data.views[k];
      const source = new THREE.Vector3(...v.source_mm);
      const beam = new THREE.Vector3(...v.beam), column = new THREE.Vector3(...v.column), row = new THREE.Vector3(...v.row);
      const middle = center.clone().sub(source).dot(beam);
      const away = middle + 5 * reach;
      camera.position.copy(source).addScaledVector(beam, away);
      camera.quaternion.setFromRotationMatrix(camera.matrix.clone().makeBasis(column, row.clone().negate(), beam));
      camera.updateMatrixWorld(true);
      const rect = fieldRect(k), W = stage.clientWidth, H = stage.clientHeight;
      const ax = 2 * (rect.x + (v.principal_px[0] + 0.5) * rect.size) / W - 1;
      const ay = 1 - 2 * (rect.y + (v.principal_px[1] + 0.5) * rect.size) / H;
      const bx = 2 * rect.size * v.sid_mm / v.spacing_mm[0] / W, by = 2 * rect.size * v.sid_mm / v.spacing_mm[1] / H;
      const near = Math.max(middle - 2 * reach, 1), far = middle + 2 * reach;
      const q = 2 / (1 / near - 1 / far), p = 1 - q / near;
      camera.projectionMatrix.set(bx, 0, ax, ax * away, 0, by, ay, ay * away, 0, 0, p, p * away + q, 0, 0, 1, away);
      camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
      Object.assign(xray.style, { left: rect.x + "px", top: rect.y + "px", width: rect.cols * rect.size + "px", height: rect.rows * rect.size + "px" });
      return v.spacing_mm[0] * middle / v.sid_mm / rect.size; // mm per css px in the middle of the tree
    }

    function lookAlong(direction) { // from the viewer into the scene
      const forward = new THREE.Vector3(...direction).normalize();
      controls.target.copy(center);
      camera.position.copy(center).addScaledVector(forward, -6 * reach);
      camera.zoom = 1;
      controls.update();
      camera.lookAt(controls.target);
      camera.updateMatrixWorld(true);
      fit();
      redraw();
    }

    function fit() { // move and zoom until the tree, seen from here, fills most of the stage
      if (!positions.length) return;
      placeFree();
      const e = camera.matrixWorld.elements;
      const low = [Infinity, Infinity], high = [-Infinity, -Infinity];
      for (let i = 0; i < positions.length; i += 3) {
        for (let k = 0; k < 2; k++) {
          const s = positions[i] * e[4 * k] + positions[i + 1] * e[4 * k + 1] + positions[i + 2] * e[4 * k + 2];
          low[k] = Math.min(low[k], s);
          high[k] = Math.max(high[k], s);
        }
      }
      const width = camera.right - camera.left, height = camera.top - camera.bottom;
      camera.zoom = 0.82 * Math.min(width / (high[0] - low[0] + 1), height / (high[1] - low[1] + 1));
      const axes = [0, 1].map((k) => new THREE.Vector3(e[4 * k], e[4 * k + 1], e[4 * k + 2]));
      const shift = new THREE.Vector3();
      axes.forEach((axis, k) => shift.addScaledVector(axis, (low[k] + high[k]) / 2 - axis.dot(controls.target)));
      controls.target.add(shift);
      camera.position.add(shift);
      controls.update();
    }

    function showView(k) {
      view = k;
      const picture = byId("input-" + (k + 1));
      if (picture) xray.src = picture.src;
      xray.style.display = picture ? "block" : "none";
      byId("picked").style.display = "none";
      byId("fade-group").hidden = false;
      marks("[data-view]", (b) => Number(b.dataset.view) === k);
      marks("[data-side]", () => false);
      marks("button[data-look]", () => false);
      redraw();
    }

    function leaveView() {
      if (view < 0) return;
      const v = data.views[view];
      view = -1;
      xray.style.display = "none";
      canvas.style.opacity = 1;
      byId("fade-group").hidden = true;
      marks("[data-view]", () => false);
      lookAlong(v.beam.map((x) => -x)); // go on from the same direction
    }

    // The direction of an angulation is the same for every view; what it shows is drawn with parallel rays.
    function showAngulation(primary, secondary, positions) {
      leaveView();
      marks("[data-side]", () => false);
      marks("button[data-look]", () => false);
      const a = primary * Math.PI / 180, b = secondary * Math.PI / 180;
      lookAlong([-Math.sin(a) * Math.cos(b), Math.cos(a) * Math.cos(b), -Math.sin(b)]); // against the beam
      selected = positions;
      paint();
    }
    turnTo = showAngulation;

    function showSide(name) {
      leaveView();
      marks("button[data-look]", () => false);
      marks("[data-side]", (b) => b.dataset.side === name);
      lookAlong({ front: [0, 1, 0], left: [-1, 0, 0], feet: [0, 1e-4, 1] }[name]);
    }

    function marks(selector, on) {
      for (const button of all(selector)) button.setAttribute("aria-pressed", String(on(button)));
    }

    function redraw() {
      if (queued) return;
      queued = true;
      requestAnimationFrame(() => { queued = false; draw(); });
    }

    function draw() {
      const width = stage.clientWidth, height = stage.clientHeight;
      if (!width || !height) return;
      const size = renderer.getSize(new THREE.Vector2());
      if (size.x !== width || size.y !== height) renderer.setSize(width, height, false);
      let mmPerPx;
      if (view >= 0) {
        mmPerPx = placeExact(view);
        canvas.style.opacity = byId("fade").value / 100;
      } else {
        placeFree();
        camera.lookAt(controls.target);
        mmPerPx = (camera.top - camera.bottom) / camera.zoom / height;
      }
      renderer.render(world, camera);
      gizmo();
      scaleBar(mmPerPx);
      if (!root.dataset.rendered) countPixels();
    }

    function countPixels() { // lets a test, and a puzzled user, see that something was drawn
      const gl = renderer.getContext();
      const pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
      gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
      const width = gl.drawingBufferWidth, box = [Infinity, Infinity, -Infinity, -Infinity];
      let drawn = 0;
      for (let i = 0; i < pixels.length / 4; i++) {
        if (!pixels[4 * i + 3]) continue;
        drawn++;
        const x = i % width, y = gl.drawingBufferHeight - 1 - Math.floor(i / width);
        box[0] = Math.min(box[0], x); box[1] = Math.min(box[1], y);
        box[2] = Math.max(box[2], x + 1); box[3] = Math.max(box[3], y + 1);
      }
      root.dataset.rendered = String(drawn);
      if (view >= 0) { // the box around the drawn tree in pixels of the view
        const rect = fieldRect(view), ratio = renderer.getPixelRatio();
        root.dataset.box = box.map((v, k) => ((v / ratio - (k % 2 ? rect.y : rect.x)) / rect.size - 0.5).toFixed(2)).join(" ");
      }
      root.dataset.viewer = "ready";
    }

    function gizmo() {
      const svg = byId("gizmo");
      const e = camera.matrixWorld.elements; // columns: right, up, towards the viewer
      const parts = [["L", 1, 0, 0, "#ff7a7a"], ["R", -1, 0, 0, "#ff7a7a"], ["P", 0, 1, 0, "#7ddc8a"], ["A", 0, -1, 0, "#7ddc8a"], ["H", 0, 0, 1, "#7fb4ff"], ["F", 0, 0, -1, "#7fb4ff"]]
        .map(([letter, x, y, z, color]) => ({ letter, color, dx: x * e[0] + y * e[1] + z * e[2], dy: -(x * e[4] + y * e[5] + z * e[6]), toward: x * e[8] + y * e[9] + z * e[10] }))
        .sort((a, b) => a.toward - b.toward);
      svg.replaceChildren();
      for (const part of parts) {
        const strong = "LPH".includes(part.letter);
        const make = (tag, attributes) => {
          const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
          for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
          svg.appendChild(node);
          return node;
        };
        const opacity = (0.35 + 0.65 * (part.toward + 1) / 2) * (strong ? 1 : 0.6);
        make("line", { x1: 0, y1: 0, x2: 32 * part.dx, y2: 32 * part.dy, stroke: part.color, "stroke-width": strong ? 2.5 : 1.2, "stroke-opacity": opacity });
        make("text", { x: 43 * part.dx, y: 43 * part.dy + 5, fill: part.color, "fill-opacity": opacity, "font-size": 14, "font-weight": 700, "text-anchor": "middle" }).textContent = part.letter;
      }
    }

    function scaleBar(mmPerPx) {
      const length = [100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1].find((mm) => mm / mmPerPx <= 150) || 0.1;
      const bar = document.createElement("i");
      bar.style.width = length / mmPerPx + "px";
      byId("scale").replaceChildren(length + " mm", bar);
    }

    function pick(event) {
      if (view >= 0) return;
      const box = canvas.getBoundingClientRect();
      const at = new THREE.Vector2((event.clientX - box.left) / box.width * 2 - 1, 1 - (event.clientY - box.top) / box.height * 2);
      const ray = new THREE.Raycaster();
      ray.setFromCamera(at, camera);
      const hit = ray.intersectObject(mesh)[0];
      const label = byId("picked");
      label.style.display = hit ? "block" : "none";
      if (!hit) return;
      const i = hit.face.a, span = data.radius_span_mm, branch = data.branches[values.branch[i]];
      const radius = span[0] + values.radius[i] / 255 * (span[1] - span[0]);
      label.textContent = "Branch " + branch.id + (branch.name ? " (" + branch.name + ")" : "") + ": radius " + radius.toFixed(2) + " mm"
        + (values.confidence ? ", confidence " + (values.confidence[i] / 255).toFixed(2) : "")
        + (values.error ? ", expected error " + (values.error[i] === 255 ? data.error_span_mm[1] + " mm or more" : (values.error[i] / 255 * data.error_span_mm[1]).toFixed(1) + " mm") : "") + ", LPS " + hit.point.toArray().map((x) => x.toFixed(1)).join(", ");
    }

    let pressed = null;
    canvas.addEventListener("pointerdown", (e) => { pressed = [e.clientX, e.clientY]; });
    canvas.addEventListener("pointerup", (e) => {
      if (pressed && Math.hypot(e.clientX - pressed[0], e.clientY - pressed[1]) < 4) pick(e);
      pressed = null;
    });
    controls.addEventListener("start", () => { leaveView(); marks("[data-side]", () => false); marks("button[data-look]", () => false); });
    controls.addEventListener("change", redraw);
    canvas.addEventListener("keydown", (e) => {
      const turn = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (e.ctrlKey || e.altKey || e.metaKey) return;
      if (turn) {
        leaveView();
        const arm = camera.position.clone().sub(controls.target);
        arm.applyAxisAngle(camera.up, -turn[0] * 0.12);
        const side = new THREE.Vector3().setFromMatrixColumn(camera.matrixWorld, 0);
        const tilted = arm.clone().applyAxisAngle(side, turn[1] * 0.12);
        const steep = Math.abs(tilted.clone().normalize().z) > 0.999;
        camera.position.copy(controls.target).add(steep ? arm : tilted);
        marks("[data-side]", () => false);
        controls.update();
      } else if (e.key === "+" || e.key === "=" || e.key === "-") {
        leaveView();
        camera.zoom = Math.min(Math.max(camera.zoom * (e.key === "-" ? 1 / 1.2 : 1.2), 0.2), 60);
      } else if (e.key === "0") showSide("front");
      else if (/^[1-8]$/.test(e.key) && data.views[Number(e.key) - 1]) showView(Number(e.key) - 1);
      else return;
      e.preventDefault();
      redraw();
    });
    for (const button of all("[data-side]")) button.addEventListener("click", () => showSide(button.dataset.side));
    for (const button of all("[data-view]")) button.addEventListener("click", () => showView(Number(button.dataset.view)));
    for (const button of all("[data-color]")) button.addEventListener("click", () => { coloring = button.dataset.color; paint(); });
    for (const button of all("[data-branch]")) {
      button.disabled = false;
      button.addEventListener("click", () => {
        const own = Number(button.dataset.branch);
        selected = selected.length === 1 && selected[0] === own ? [] : [own];
        paint();
      });
    }
    byId("fade").addEventListener("input", redraw);
    byId("lines").addEventListener("change", (e) => {
      for (const line of lines) line.visible = e.target.checked;
      material.transparent = e.target.checked;
      material.opacity = e.target.checked ? 0.55 : 1;
      material.needsUpdate = true;
      redraw();
    });
    new ResizeObserver(redraw).observe(stage);
    canvas.addEventListener("webglcontextlost", (e) => { e.preventDefault(); root.classList.add("nogl"); });
    canvas.addEventListener("webglcontextrestored", () => { root.classList.remove("nogl"); redraw(); });
    paint();
    const asked = /^#view-([1-8])$/.exec(location.hash); // report.html#view-2 opens as in view 2
    if (asked && data.views[asked[1] - 1]) {
      lookAlong([0, 1, 0]);
      showView(asked[1] - 1);
    } else showSide("front");
    const turned = /^#look=(-?\d{1,3}),(-?\d{1,2})$/.exec(location.hash); // report.html#look=30,-20: LAO 30, CAU 20
    if (turned) showAngulation(Number(turned[1]), Number(turned[2]), []);
    draw(); // at once: a page that is printed or photographed as soon as it is loaded shows the tree
  }
})();
