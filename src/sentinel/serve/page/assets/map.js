// The layer x head map: which heads are used; a click masks one or restores it.
const one = (id) => document.getElementById(id);
const GAP = 2;
const [SMALLEST, LARGEST] = [16, 24]; // pixels of a cell
const SIDE = 84; // pixels of the names beside the rows
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class HeadMap {
  // `changed` is called after a head was masked or restored.
  constructor(about, changed) {
    this.about = about;
    this.changed = changed;
    this.masked = new Set(); // "layer,head"
    this.kept = about.n_head;
    this.at = [0, 0]; // row and column that the keyboard is at
    this.place = one("map");
    this.place.classList.toggle("fixed", about.masking === null);
    this.place.addEventListener("click", (event) => this.clicked(event.target.closest("button")));
    this.place.addEventListener("keydown", (event) => this.moved(event));
    new ResizeObserver(() => this.laidOut()).observe(one("map-place"));
  }

  // Heads of each layer that the width keeps; `lifted`: no mask stays.
  show(kept, lifted) {
    this.kept = kept;
    const gone = ([layer, head]) => lifted || head >= kept[layer];
    for (const name of [...this.masked]) if (gone(name.split(",").map(Number))) this.masked.delete(name);
    this.laidOut();
    this.paint();
  }

  pairs() {
    return [...this.masked].map((name) => name.split(",").map(Number));
  }

  restore() {
    this.masked.clear();
    this.paint();
    this.changed();
  }

  // Layers run across where there is room for them, so that the map is no longer than it must be.
  laidOut() {
    const [layers, heads] = [this.about.n_head.length, Math.max(1, ...this.about.n_head)];
    const room = one("map-place").clientWidth - SIDE;
    const across = room / layers >= SMALLEST + GAP || layers <= heads;
    const columns = across ? layers : heads;
    const cell = Math.max(SMALLEST, Math.min(LARGEST, Math.floor(room / columns) - GAP));
    this.place.style.setProperty("--columns", columns);
    this.place.style.setProperty("--cell", `${cell}px`);
    if (this.across === across) return;
    this.across = across;
    this.build(across ? heads : layers, columns);
    this.paint();
  }

  build(rows, columns) {
    const names = this.across ? ["head", "layer"] : ["layer", "head"];
    this.cells = [];
    const top = this.row([this.label(`${names[0]} ↓ ${names[1]} →`, true), ...this.numbers(columns)]);
    top.setAttribute("aria-hidden", "true");
    const lines = Array.from({ length: rows }, (_, row) => {
      const cells = Array.from({ length: columns }, (_, column) => this.cell(row, column));
      this.cells.push(cells);
      return this.row([this.label(row, true), ...cells]);
    });
    this.at = [0, 0];
    this.place.replaceChildren(top, ...lines);
  }

  numbers(count) {
    const step = count > 12 ? 5 : 1;
    return Array.from({ length: count }, (_, number) => this.label(number % step ? "" : number, false));
  }

  row(cells) {
    const row = document.createElement("div");
    row.setAttribute("role", "row");
    row.append(...cells);
    return row;
  }

  label(text, side) {
    const label = document.createElement("span");
    label.textContent = text;
    label.setAttribute("aria-hidden", "true");
    if (side) label.className = "side";
    return label;
  }

  cell(row, column) {
    const [layer, head] = this.across ? [column, row] : [row, column];
    const exists = head < this.about.n_head[layer];
    const cell = document.createElement(exists ? "button" : "span");
    if (exists) Object.assign(cell.dataset, { layer, head });
    if (exists) cell.type = "button";
    cell.setAttribute("role", "gridcell");
    return cell;
  }

  state(layer, head) {
    if (head >= this.kept[layer]) return "removed";
    return this.masked.has(`${layer},${head}`) ? "masked" : "kept";
  }

  paint() {
    const words = { kept: "used", masked: "masked", removed: "beyond the width" };
    const count = { kept: 0, masked: 0, removed: 0 };
    for (const cell of this.place.querySelectorAll("button")) {
      const state = this.state(Number(cell.dataset.layer), Number(cell.dataset.head));
      count[state] += 1;
      cell.className = state;
      cell.title = `layer ${cell.dataset.layer}, head ${cell.dataset.head}: ${words[state]}`;
      cell.setAttribute("aria-label", cell.title);
      cell.setAttribute("aria-selected", state === "kept");
      cell.tabIndex = -1;
    }
    const first = this.cells[this.at[0]][this.at[1]];
    (first.dataset.layer ? first : this.place.querySelector("button"))?.setAttribute("tabindex", "0");
    one("restore").disabled = !this.masked.size;
    this.say(count);
  }

  say({ kept, masked, removed }) {
    const elastic = this.about.widths.length > 1 ? " Heads are stored most important first." : "";
    const how = this.about.masking === null
      ? " A quantised model has no gates, so that none can be masked."
      : " Click one (or Enter) to mask or restore it.";
    one("map-said").textContent =
      `${kept} of ${kept + masked + removed} are used${masked ? `, ${masked} masked` : ""}.${elastic}${how}`;
  }

  clicked(cell) {
    if (!cell || this.about.masking === null) return;
    const [layer, head] = [Number(cell.dataset.layer), Number(cell.dataset.head)];
    if (this.state(layer, head) === "removed") return;
    const name = `${layer},${head}`;
    if (!this.masked.delete(name)) this.masked.add(name);
    this.at = this.across ? [head, layer] : [layer, head];
    this.paint();
    cell.focus();
    this.changed();
  }

  moved(event) {
    const step = MOVES[event.key];
    if (!step) return;
    event.preventDefault();
    let [row, column] = this.at;
    do {
      [row, column] = [row + step[0], column + step[1]];
    } while (this.cells[row]?.[column] && !this.cells[row][column].dataset.layer);
    const next = this.cells[row]?.[column];
    if (!next) return;
    this.cells[this.at[0]][this.at[1]].tabIndex = -1;
    this.at = [row, column];
    next.tabIndex = 0;
    next.focus();
  }
}
