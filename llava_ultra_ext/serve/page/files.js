// Files of one exam from the reader's machine to the server's memory, and the server's answers.

export const address = (path) => new URL(path, document.baseURI);
export const forget = (key) => key && fetch(address(`exam/drop/${key}`), { method: "POST", keepalive: true });

export async function post(path, options = {}) {
  const answer = await fetch(address(path), { method: "POST", ...options });
  const text = await answer.text();
  let value = {};
  try { value = JSON.parse(text); } catch { value = { message: text }; }
  if (!answer.ok) throw new Error(value.message || `服务出错 (${answer.status})。 The server failed.`);
  return value;
}

export function upload(files) {
  // The order is that of the names; the names themselves stay here, since they may be a patient's.
  files.sort((one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }));
  const sizes = files.map((file) => file.size).join(",");
  return post("exam", { headers: { "X-Sizes": sizes }, body: new Blob(files) });
}

// Files may be dropped anywhere on the page; `zone` shows it.
export function bindDropping(zone, take) {
  const over = (event, on) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    zone.classList.toggle("over", on);
  };
  document.addEventListener("dragover", (event) => over(event, true));
  document.addEventListener("dragleave", (event) => over(event, false));
  document.addEventListener("drop", async (event) => {
    over(event, false);
    if (event.dataTransfer?.files.length) take(await droppedFiles(event.dataTransfer));
  });
}

async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives a folder in parts
    const part = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!part.length) return found;
    found.push(...(await Promise.all(part.map(filesOf))).flat());
  }
}
