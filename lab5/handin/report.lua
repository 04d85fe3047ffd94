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
