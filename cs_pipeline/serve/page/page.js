// Browser functions for the page's buttons. They send no text anywhere.
globalThis.support = {
  save(text, name, kind) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  },
  async copy(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // navigator.clipboard is missing over plain HTTP from another machine.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  },
};
