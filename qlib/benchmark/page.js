// Tables of a study's page: a click on a heading sorts, words in the filter choose rows.
const table = document.getElementById("results");
const body = table.tBodies[0];

function value(row, column) {
  const text = row.cells[column].textContent;
  const number = parseFloat(text);
  return isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a < b ? -1 : a > b ? 1 : 0;
}

table.querySelectorAll("th").forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const order = (a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column));
    [...body.rows].sort(order).forEach(row => body.append(row));
  });
});

document.getElementById("filter").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  }
});
