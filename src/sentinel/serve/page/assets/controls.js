// The dial: levels as radio buttons, stored widths as a slider.
const one = (id) => document.getElementById(id);

const ratio = (share) => `${Math.round(1000 * share) / 10} %`;

// What a width leaves away, or "" for the whole model.
export function without({ heads, neurons }) {
  const parts = [heads ? `${ratio(heads)} of heads` : "", neurons ? `${ratio(neurons)} of neurons` : ""].filter(Boolean);
  return parts.length ? `without ${parts.join(" and ")}` : "";
}

export class Controls {
  // `turned` is called after every change.
  constructor(about, turned) {
    this.levels = about.levels;
    this.widths = about.widths;
    this.place = one("levels").querySelector(".choices");
    this.levels.forEach((level, index) => this.place.append(this.radio(level, index)));
    const start = this.levels.findIndex((l) => l.level === about.start.level && l.precision === about.start.precision);
    this.radios[start].checked = true;
    this.place.addEventListener("change", () => {
      this.sayLevel();
      turned();
    });
    this.slider = one("dial");
    this.slider.max = this.widths.length - 1;
    this.slider.value = this.widths.findIndex((w) => w.heads === about.start.heads && w.neurons === about.start.neurons);
    this.slider.addEventListener("input", () => {
      this.sayWidth();
      turned();
    });
    const single = this.widths.length === 1;
    this.slider.hidden = single;
    one("one-width").hidden = !single;
    if (!single) one("ticks").append(...this.widths.map((width) => this.tick(width)));
    this.sayWidth();
    this.sayLevel();
  }

  radio({ level, name, precision }, index) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "level", value: index });
    label.append(input, `${level} ${name}`);
    const small = document.createElement("small");
    small.textContent = precision;
    label.append(small);
    return label;
  }

  tick({ heads, neurons }) {
    const tick = document.createElement("span");
    const words = [heads ? `${ratio(heads)}` : "", neurons ? `${heads ? "/" : "0 % / "}${ratio(neurons)}` : ""].join("");
    tick.textContent = words ? `−${words}` : "all";
    return tick;
  }

  get radios() {
    return [...this.place.querySelectorAll("input")];
  }

  get level() {
    return this.setting().level;
  }

  get width() {
    return this.widths[Number(this.slider.value)];
  }

  // Choose the first precision of a level.
  choose(level) {
    this.radios[this.levels.findIndex((one) => one.level === level)].checked = true;
    this.sayLevel();
  }

  setting() {
    const { level, precision } = this.levels[this.radios.findIndex((radio) => radio.checked)];
    return { level, precision, heads: this.width.heads, neurons: this.width.neurons };
  }

  sayLevel() {
    const { description } = this.levels[this.radios.findIndex((radio) => radio.checked)];
    one("level-said").textContent = description[0].toUpperCase() + description.slice(1) + ".";
  }

  sayWidth() {
    const said = without(this.width) || "all heads and neurons";
    one("width-said").textContent = said;
    this.slider.setAttribute("aria-valuetext", said);
  }
}
