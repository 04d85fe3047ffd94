-- What pandoc takes for HTML is the author's text, `vector<float>`: it is shown as it was written. Comments are left out.
local function shown(raw)
  return raw.format ~= "html" and raw or raw.text:match("^<!%-%-") and {} or pandoc.Str(raw.text)
end

function RawInline(raw) return shown(raw) end
function RawBlock(raw)
  local text = shown(raw)
  return text.t == "Str" and pandoc.Para(text) or text
end

-- Typst has another delimiter for each of these than pandoc writes
function Math(math)
  for name, bar in pairs({ vmatrix = "|", Vmatrix = "\\Vert" }) do
    math.text = math.text:gsub("\\begin{" .. name .. "}", "\\left" .. bar .. "\\begin{matrix}")
                         :gsub("\\end{" .. name .. "}", "\\end{matrix}\\right" .. bar)
  end
  return math
end

-- A comparison has a column "choice"; in the report each choice is a line of its own above its options
local widths = { 0.24, 0.067, 0.07, 0.083, 0.067, 0.085, 0.08, 0.067, 0.067, 0.174 }
function Table(whole)
  local name, head, rows, last = pandoc.utils.stringify, whole.head.rows[1], pandoc.List(), ""
  if name(head.cells[1].contents) ~= "choice" then return nil end
  head.cells:remove(1)
  for _, row in ipairs(whole.bodies[1].body) do
    local choice = row.cells:remove(1)
    if name(choice.contents) ~= last then
      last = name(choice.contents)
      rows:insert(pandoc.Row({ pandoc.Cell({ pandoc.Plain({ pandoc.Strong(last) }) }, "AlignLeft", 1, #row.cells) }))
    end
    rows:insert(row)
  end
  whole.bodies[1].body = rows
  whole.colspecs = pandoc.List(widths):map(function(width) return { "AlignLeft", width } end)
  return whole
end
