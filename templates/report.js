// What the page can do besides being read: sort and filter tables, walk the head grids, fold findings, show what is picked,
// record decisions.
// Nothing is sent anywhere: a decision leaves the page as a file that its reader saves. Only a page that 'vit-audit serve'
// gives out saves to the run that it is of.
(() => {
  "use strict";
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  document.documentElement.classList.add("scripted");

  // --- tables -------------------------------------------------------------------------------------------------------
  const FEW = 3, MANY = 12;
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const textOf = (cell) => cell.textContent.trim();
  const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const SECONDS = { h: 3600, min: 60, s: 1 };
  const numberOf = (cell) => {
    const text = textOf(cell).replace(/\u2212/g, "-").replace(/,/g, "");
    const times = [...text.matchAll(/(\d+(?:\.\d+)?) (h|min|s)\b/g)];
    if (times.length > 0) return times.reduce((sum, [, value, unit]) => sum + Number(value) * SECONDS[unit], 0);
    const found = text.match(/([+-]?\d+(?:\.\d+)?)(?: × 10(⁻?)([⁰¹²³⁴⁵⁶⁷⁸⁹]+))?/);
    if (found === null) return null;
    const power = Number([...(found[3] ?? "⁰")].map((digit) => RAISED.indexOf(digit)).join(""));
    return Number(found[1]) * 10 ** (found[2] ? -power : power);
  };

  const compare = (column, isNumber, sign) => (a, b) => {
    if (!isNumber) return sign * words.compare(textOf(a.cells[column]), textOf(b.cells[column]));
    const [x, y] = [numberOf(a.cells[column]), numberOf(b.cells[column])];
    if (x === null || y === null) return (x === null) - (y === null); // what is not estimable comes last, either way
    return sign * (x - y);
  };

  const sortable = (table) => {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", className: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const body = table.tBodies[0];
        const sign = order === "ascending" ? 1 : -1;
        body.append(...[...body.rows].sort(compare(column, head.classList.contains("number"), sign)));
      });
    });
  };

  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    const count = make("output", { textContent: `${rows.length} rows` });
    const field = make("input", { type: "search", autocomplete: "off", spellcheck: false });
    const name = textOf(table.caption);
    field.setAttribute("aria-label", `Filter the rows of: ${name}`);
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLocaleLowerCase();
      rows.forEach((row) => { row.hidden = !textOf(row).toLocaleLowerCase().includes(wanted); });
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = wanted ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
    });
    const label = make("label", { className: "filter" }, "Filter rows ", field, " ", count);
    table.closest(".scroll").before(label);
  };

  all("table:not(.grid)").filter((table) => table.tBodies[0].rows.length >= FEW).forEach(sortable);
  all("table:not(.grid)").filter((table) => table.tBodies[0].rows.length >= MANY).forEach(filterable);

  // --- head grids ---------------------------------------------------------------------------------------------------
  const meanings = new Map(
    all(".legend-symbols > span").map((item) => {
      const symbol = item.querySelector(".symbol");
      return [textOf(symbol), textOf(item).slice(textOf(symbol).length).trim()];
    }),
  );

  const inWords = (table, cell) => {
    const symbol = cell.querySelector(".symbol");
    const value = textOf(cell).slice(symbol === null ? 0 : textOf(symbol).length).trim();
    const meaning = symbol === null ? "" : `, ${meanings.get(textOf(symbol)) ?? ""}`;
    return `${headOf(table, cell)}: ${value}${meaning}`;
  };

  const headOf = (table, cell) =>
    textOf(cell.parentElement.cells[0]) + textOf(table.tHead.rows[0].cells[cell.cellIndex]);

  const showHead = (table, cell) => {
    const name = headOf(table, cell);
    for (const list of all("table.heads", table.closest(".head-block") ?? document.createElement("div"))) {
      const row = [...list.tBodies[0].rows].find((candidate) => textOf(candidate.cells[0]) === name);
      if (row === undefined) continue;
      const fold = list.closest("details");
      if (fold !== null) fold.open = true;
      row.hidden = false;
      row.cells[0].tabIndex = -1;
      row.cells[0].focus();
      row.scrollIntoView({ block: "center" });
      return;
    }
  };

  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  all("table.grid").forEach((table) => {
    const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));
    const cells = rows.flat();
    if (cells.length === 0) return;
    const detail = make("p", { className: "grid-detail" });
    detail.setAttribute("aria-live", "polite");
    detail.textContent = "Point at a cell, or walk the grid with the arrow keys.";
    table.closest(".scroll").after(detail);
    table.closest(".scroll").removeAttribute("tabindex"); // its cells take the focus
    table.setAttribute("role", "grid");
    cells.forEach((cell, position) => { cell.tabIndex = position === 0 ? 0 : -1; });
    const tell = (cell) => { detail.textContent = inWords(table, cell); };
    const cellOf = (event) => event.target.closest("td");
    table.addEventListener("pointerover", (event) => { const cell = cellOf(event); if (cell !== null) tell(cell); });
    table.addEventListener("focusin", (event) => {
      const cell = cellOf(event);
      if (cell === null) return;
      cells.forEach((other) => { other.tabIndex = other === cell ? 0 : -1; });
      tell(cell);
    });
    table.addEventListener("click", (event) => { const cell = cellOf(event); if (cell !== null) cell.focus(); });
    table.addEventListener("keydown", (event) => {
      const cell = cellOf(event);
      if (cell === null) return;
      if (event.key === "Enter") { showHead(table, cell); return; }
      const row = rows.findIndex((of) => of.includes(cell)), column = rows[row].indexOf(cell);
      const edge = { Home: [row, 0], End: [row, rows[row].length - 1] }[event.key];
      const step = STEPS[event.key];
      if (edge === undefined && step === undefined) return;
      const [toRow, toColumn] = edge ?? [row + step[0], column + step[1]];
      event.preventDefault();
      rows[toRow]?.[toColumn]?.focus();
    });
  });

  // --- folds --------------------------------------------------------------------------------------------------------
  // A link to something inside a fold opens the fold.
  const reveal = () => {
    let name = location.hash.slice(1);
    try { name = decodeURIComponent(name); } catch { return; }  // no address of ours
    const target = document.getElementById(name);
    const body = target?.closest("article")?.querySelector("details");
    const folds = [...(body ? [body] : [])];
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) folds.push(fold);
    folds.forEach((fold) => { fold.open = true; });
    if (folds.length) target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  // --- what is picked -----------------------------------------------------------------------------------------------
  // Every number comes written from the block of data; a block of facts that changes is read out as a whole.
  const picker = document.getElementById("picker");
  if (picker !== null) {
    const known = JSON.parse(document.getElementById("pick-data").textContent);
    const [pairs, labels, groups, heads] = ["pair", "label", "group", "head"].map((of) => document.getElementById(`pick-${of}`));
    const offer = (select, names, chosen = 0) => {
      select.replaceChildren(...names.map((name, value) => new Option(name, value)));
      select.selectedIndex = chosen;
    };
    const kept = (select, rows, otherwise) => select.options.length === rows.length ? select.selectedIndex : otherwise;
    const put = (element, text) => { if (element && element.textContent !== text) element.textContent = text; };
    const fill = (block, title, texts, place = "") => {
      put(block.querySelector("h3 bdi"), title);
      all("dd", block).forEach((value, number) => {
        put(value, texts[number] ?? "");
        value.parentElement.hidden = !texts[number];
      });
      put(block.querySelector(".pointer"), place);
    };
    const pair = () => known.pairs[pairs.value];
    const label = () => pair().labels[labels.value];

    const showRates = () => {
      const [place, name, ...texts] = known.rates[label().groups[groups.value]];
      fill(document.getElementById("picked-rates"), name, texts, `/rates/${place}`);
    };
    const showHead = () => {
      const block = document.getElementById("picked-head");
      if (block === null) return;
      const isAsked = label().heads.length > 0;
      heads.disabled = !isAsked;
      block.classList.toggle("unasked", !isAsked);
      const [place, name, verdict, ...texts] = label().heads[heads.value] ?? [];
      fill(block, name ?? block.dataset.none, isAsked ? [known.verdicts[verdict], ...texts] : [], isAsked ? `/heads/${place}` : "");
    };
    const showLabel = (isSamePair) => {
      const { groups: places, gaps, heads: rows, largest } = label();
      offer(groups, places.map((place) => known.rates[place][1]), isSamePair ? kept(groups, places, 0) : 0);
      const names = rows.map(([, name, verdict]) => `${name}, ${known.verdicts[verdict]}`);
      if (heads !== null) offer(heads, names, isSamePair ? kept(heads, rows, largest) : largest);
      const block = document.getElementById("picked-gaps");
      if (block !== null) {
        block.hidden = !gaps.some(Boolean);
        fill(block, pair().name, gaps);
      }
      all(".picked-label", picker).forEach((element) => put(element, label().name));
      showRates();
      showHead();
    };
    const showPair = () => { offer(labels, pair().labels.map(({ name }) => name)); showLabel(false); };

    offer(pairs, known.pairs.map(({ name }) => name));
    showPair();
    pairs.addEventListener("change", showPair);
    labels.addEventListener("change", () => showLabel(true));
    groups.addEventListener("change", showRates);
    heads?.addEventListener("change", showHead);
    all("#pick .unscripted").forEach((line) => { line.hidden = true; });
    picker.hidden = false;
  }

  const bar = document.getElementById("review-bar");
  if (bar === null) return;
  bar.hidden = false;
  all(".section-reviews").forEach((block) => { block.hidden = false; });
  const status = bar.querySelector("output");
  const [save, fold] = all("button", bar);
  const folds = all("details.finding-body");
  const tellFold = () => { fold.textContent = folds.some((body) => body.open) ? "Fold all findings" : "Unfold all findings"; };
  fold.addEventListener("click", () => {
    const open = folds.some((body) => body.open);
    folds.forEach((body) => { body.open = !open; });
    tellFold();
  });
  tellFold();

  // --- decisions ----------------------------------------------------------------------------------------------------
  const NEEDED = ["name", "role", "reason"], WHO = ["name", "role", "independence"];
  const FIELDS = [...WHO, "reason", "remedy", "owner", "due"], OWN = ["reason", "remedy", "owner", "due"];
  const served = bar.dataset.served !== undefined;

  const forms = all("[data-subject]").map((place, number) => {
    const { subject, kind } = place.dataset;
    const template = document.getElementById(subject === "report" && kind === "section" ? "opinion-form" : "decision-form");
    all(".paper", place).forEach((paper) => { paper.hidden = true; });
    place.append(template.content.cloneNode(true));
    all("input[type=radio]", place).forEach((choice) => { choice.name = `decision-${number}`; });
    const fields = Object.fromEntries(FIELDS.map((key) => [key, place.querySelector(`[name=${key}]`)]));
    const chosen = () => place.querySelector("input[type=radio]:checked");
    const value = (key) => fields[key].value.trim();
    return { subject, kind, place, chosen, fields, value };
  });

  let saved = true;
  const decided = () => forms.filter((item) => item.chosen() !== null);
  const tellCount = () => {
    const findings = decided().filter((item) => item.kind === "finding").length;
    const rest = decided().length - findings;
    status.textContent = `${findings} of ${folds.length} findings decided on this page` + (rest > 0 ? `, and ${rest} of the rest` : "");
  };
  tellCount();

  forms.forEach((item) => {
    item.place.addEventListener("input", () => { saved = false; item.changed = new Date().toISOString(); tellCount(); });
    item.place.addEventListener("change", (event) => {
      if (event.target.type !== "radio") return;
      for (const key of WHO) { // a reviewer is seldom two people
        const before = forms.map((other) => other.value(key)).find((value) => value !== "");
        if (item.value(key) === "" && before !== undefined) item.fields[key].value = before;
      }
    });
  });

  // The first field that lacks something, and what is to be said of it.
  const missing = () => {
    let first = null;
    for (const item of forms) {
      const isChosen = item.chosen() !== null;
      for (const key of NEEDED) {
        const lacks = isChosen && item.value(key) === "";
        item.fields[key].setAttribute("aria-invalid", String(lacks));
        if (lacks) first ??= { item, field: item.fields[key], said: "name, role and reason are needed" };
      }
      if (isChosen || !OWN.some((key) => item.value(key) !== "")) continue;
      first ??= { item, field: item.place.querySelector("input[type=radio]"), said: "choose a decision, or empty its fields" };
    }
    return first;
  };

  const asDecision = (item) => ({
    [item.kind]: item.subject,
    decision: item.chosen().value,
    decided: item.changed, // saved once more, it is the same decision
    ...Object.fromEntries(FIELDS.map((key) => [key, item.value(key)]).filter(([, value]) => value !== "")),
  });

  const toFile = (text, count) => {
    const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    make("a", { href: address, download: "review.json" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    saved = true;
    status.textContent = `review.json saved: ${count} decisions. Next: vit-audit review RUN review.json`;
  };

  const NOTE = "vit-audit-saved"; // what the page that is loaded after a save says
  const toRun = async (text) => {
    save.disabled = true;
    status.textContent = "Saving: the reports are written again";
    try {
      const answer = await fetch("decisions", { method: "POST", headers: { "Content-Type": "application/json" }, body: text });
      const said = await answer.text();
      if (!answer.ok) { status.textContent = `Not saved: ${said}`; return; }
      saved = true;
      sessionStorage.setItem(NOTE, said);
      location.reload();
    } catch {
      status.textContent = "Not saved: vit-audit serve does not answer; what was entered is still on this page";
    } finally {
      save.disabled = false;
    }
  };
  if (served && sessionStorage.getItem(NOTE) !== null) {
    status.textContent = sessionStorage.getItem(NOTE);
    sessionStorage.removeItem(NOTE);
  }

  save.addEventListener("click", () => {
    const lacking = missing();
    if (lacking !== null) {
      status.textContent = `${lacking.item.subject}: ${lacking.said}`;
      for (let body = lacking.field.closest("details"); body !== null; body = body.parentElement.closest("details")) body.open = true;
      lacking.field.focus();
      return;
    }
    if (decided().length === 0) {
      status.textContent = "Nothing is decided yet: choose a decision in a finding or a section first";
      return;
    }
    const review = { review_version: "1.1", audit_sha256: bar.dataset.audit, decisions: decided().map(asDecision) };
    const text = JSON.stringify(review, null, 1) + "\n";
    if (served) toRun(text); else toFile(text, review.decisions.length);
  });

  // Each section that can be commented on has a link to its form.
  all(".section-review").forEach((form) => {
    const section = document.getElementById(form.dataset.anchor);
    const link = make("a", { href: `#${form.id}`, textContent: `Comment on: ${textOf(form.querySelector("summary")).toLowerCase()}` });
    section?.append(make("p", { className: "comment-link" }, link));
  });

  addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
})();
